"""Weights files: safetensors, or torch's zip format, recognized by their first bytes."""

from __future__ import annotations

import json
import math
import pickle
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from camae.errors import CamaeError

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_POINTER = b"version https://git-lfs"
_LISTED = 8  # names in an error
_MOST_TENSORS = 2**16
_MOST_HEADER = 2**25  # bytes
# How a safetensors header names the types of tensors.
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
Shapes = dict[str, tuple[int, ...]]


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file: equal tensors and metadata make equal bytes.

    The format's own writer has its metadata in the order of a hash table. Tensors lie in the order of item size
    (largest first), then name, as it has them.
    """
    names = sorted(tensors, key=lambda n: (-tensors[n].element_size(), n))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in names:
        tensor, start = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            flat = tensors[name].detach().cpu().contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data if len(flat) else b"")


def read_tensors(
    file: Path, check: Callable[[dict[str, str], Shapes], object] | None = None
) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Read a weights file: (metadata, tensors by name), floats as float32.

    check: called with the metadata and shapes of a safetensors file before any tensor is read.
    A safetensors file is mapped, not read (replace such a file, never overwrite it in place); a torch file is
    read with `weights_only=True`, so that nothing in it can run. Either way its tensors are in memory once.
    Raises CamaeError for any other content, and for a value that is no finite number.
    """
    with open(file, "rb") as f:
        start = f.read(32)
    if start.startswith(_ZIP):
        metadata: dict[str, str] = {}
        tensors = _torch_zip(file)
    elif len(start) > 8 and start[8:9] == b"{":
        metadata, tensors = _safetensors(file, check)
    elif start.startswith(_POINTER):
        raise CamaeError(f"{file}: a git-lfs pointer, not the weights; fetch the file itself (git lfs pull)")
    elif start.startswith(_PICKLE):
        raise CamaeError(
            f"{file}: a bare pickle, which is never loaded because it can run code; save it again with torch.save "
            "of torch 1.6 or later, or as safetensors"
        )
    else:
        raise CamaeError(f"{file}: not a readable model file (neither safetensors nor a torch file)")
    floats = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    check_finite(file, floats)
    return metadata, floats


def check_finite(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise CamaeError that names a tensor with a value that is no finite number."""
    for name, tensor in tensors.items():
        # A sum in float64 cannot overflow: it is finite exactly where all values are.
        if tensor.is_floating_point() and not math.isfinite(tensor.sum(dtype=torch.float64).item()):
            count = int((~torch.isfinite(tensor)).sum())
            raise CamaeError(
                f"{file}: {count:,} of the {tensor.numel():,} values of {name} are NaN or infinite, so the model would "
                "give no vectors; take an earlier checkpoint or another copy of the file"
            )


def _safetensors(
    file: Path, check: Callable[[dict[str, str], Shapes], object] | None
) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    with open(file, "rb") as f:
        (header,) = struct.unpack("<Q", f.read(8))
    if header > min(_MOST_HEADER, file.stat().st_size - 8):
        raise CamaeError(
            f"{file}: not a readable model file (its header claims {header:,} bytes of the {file.stat().st_size:,} "
            f"there are, and at most {_MOST_HEADER:,} are read)"
        )
    try:
        with safe_open(file, framework="pt", device="cpu") as f:
            names = list(f.keys())
            if len(names) > _MOST_TENSORS:
                raise CamaeError(
                    f"{file}: it lists {len(names):,} tensors; at most {_MOST_TENSORS:,} are read"
                )
            metadata = f.metadata() or {}
            if check is not None:
                check(metadata, {name: tuple(f.get_slice(name).get_shape()) for name in names})
            return metadata, {name: f.get_tensor(name) for name in names}
    except CamaeError:
        raise
    except (SafetensorError, OSError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        # Shapes that the header may have and torch may not come as errors of several kinds.
        reason = str(error).splitlines()[0]
        raise CamaeError(f"{file}: not a readable model file ({reason})") from None


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
