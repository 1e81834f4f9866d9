"""Weights files: safetensors, or torch's zip format, recognized by their first bytes."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from camae.errors import CamaeError

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_POINTER = b"version https://git-lfs"
_LISTED = 8  # names in an error


def read_tensors(file: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Read a weights file: (metadata, tensors by name), floats as float32.

    A safetensors file is mapped, not read (replace such a file, never overwrite it in place); a torch file is
    read with `weights_only=True`, so that nothing in it can run. Either way its tensors are in memory once.
    Raises CamaeError for any other content.
    """
    with open(file, "rb") as f:
        start = f.read(32)
    if start.startswith(_ZIP):
        metadata: dict[str, str] = {}
        tensors = _torch_zip(file)
    elif len(start) > 8 and start[8:9] == b"{":
        metadata, tensors = _safetensors(file)
    elif start.startswith(_POINTER):
        raise CamaeError(f"{file}: a git-lfs pointer, not the weights; fetch the file itself (git lfs pull)")
    elif start.startswith(_PICKLE):
        raise CamaeError(
            f"{file}: a bare pickle, which is never loaded because it can run code; save it again with torch.save "
            "of torch 1.6 or later, or as safetensors"
        )
    else:
        raise CamaeError(f"{file}: not a readable model file (neither safetensors nor a torch file)")
    return metadata, {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def _safetensors(file: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    try:
        with safe_open(file, framework="pt", device="cpu") as f:
            return f.metadata() or {}, {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CamaeError(f"{file}: not a readable model file ({error})") from None


def _torch_zip(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of {"state_dict": {...}} or of a bare {name: tensor}."""
    try:
        with open(file, "rb") as f:  # by its name, torch would take model.safetensors for safetensors
            content: object = torch.load(f, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CamaeError(
            f"{file}: a torch file with more in it than tensors and plain values; it is not loaded, because its "
            "pickle could run code: save only the state dict"
        ) from None
    except (RuntimeError, OSError, EOFError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CamaeError(f"{file}: not a readable model file ({reason})") from None
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise CamaeError(f'{file}: a torch file without a state dict; expected {{"state_dict": ...}}')
    return {str(name): tensor for name, tensor in state.items()}


def check_shapes(
    file: Path, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise CamaeError that lists missing, unexpected and wrongly shaped tensors."""
    common = sorted(set(expected) & set(found))
    differences = {
        "missing": sorted(set(expected) - set(found)),
        "unexpected": sorted(set(found) - set(expected)),
        "wrongly shaped": [
            f"{k} {found[k]} instead of {expected[k]}" for k in common if found[k] != expected[k]
        ],
    }
    problems = []
    for what, names in differences.items():
        if names:
            more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            problems.append(f"{len(names)} {what} tensors: {', '.join(names[:_LISTED])}{more}")
    if problems:
        raise CamaeError(f"{file}: {'; '.join(problems)}")
