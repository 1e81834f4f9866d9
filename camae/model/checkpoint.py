"""Models on disk: one safetensors file whose header carries the configuration."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from camae.errors import CamaeError, MissingFileError
from camae.files import write_atomic
from camae.model.config import ModelConfig

if TYPE_CHECKING:
    from camae.model.ca_mae import CAMAE

MODEL_FILE = "model.safetensors"
_FORMAT = "camae-model-1"


def save(model: CAMAE, path: str | Path, **about: Any) -> Path:
    """Write `model` to a safetensors file, atomically. `about`: JSON values kept beside the configuration."""
    metadata = {
        "format": _FORMAT,
        "config": json.dumps(model.config.to_dict()),
        "about": json.dumps(about),
    }
    tensors = {k: v.detach().contiguous().cpu() for k, v in model.state_dict().items()}
    return write_atomic(path, lambda p: save_file(tensors, p, metadata))


def load(path: str | Path, *, device: str | torch.device = "cpu", **changes: Any) -> CAMAE:
    """Load a model: a run folder of `camae.train`, one of its checkpoints, or a model file.

    `changes` override configuration fields that hold no weights (for example `mask_ratio`).
    Raises CamaeError when the file is not complete: missing, unexpected and wrongly shaped tensors are listed.
    """
    file = find_model_file(path)
    from camae.model.ca_mae import CAMAE

    try:
        with safe_open(file, framework="pt", device="cpu") as f:
            metadata = f.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise CamaeError(
                    f"{file}: a safetensors file, but not a camae model (no configuration in it)"
                )
            config = ModelConfig.from_dict(json.loads(metadata["config"]) | changes)
            state = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CamaeError(f"{file}: not a readable model file ({error})") from None
    model = CAMAE(config)
    check_state(file, model.state_dict(), state)
    model.load_state_dict(state)
    return model.to(device).eval()


def find_model_file(path: str | Path) -> Path:
    """The model file that `path` (a file, a run folder, a checkpoint folder) stands for."""
    path = Path(path)
    if path.is_file():
        return path
    if not path.exists():
        raise MissingFileError(f"{path}: no such model, file or folder")
    for candidate in (
        path / MODEL_FILE,
        *sorted(path.glob("checkpoints/step_*/" + MODEL_FILE), reverse=True),
    ):
        if candidate.is_file():
            return candidate
    raise CamaeError(f"{path}: a folder without {MODEL_FILE} or checkpoints in it; name a run of camae.train")


def check_state(file: Path, expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> None:
    """Complete or refused: raise CamaeError that lists what differs."""
    missing = sorted(set(expected) - set(found))
    unexpected = sorted(set(found) - set(expected))
    shapes = [
        f"{k} {tuple(found[k].shape)} instead of {tuple(expected[k].shape)}"
        for k in sorted(set(found) & set(expected))
        if found[k].shape != expected[k].shape
    ]
    for what, names in (("missing", missing), ("unexpected", unexpected), ("wrongly shaped", shapes)):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise CamaeError(f"{file}: {len(names)} {what} tensors: {', '.join(names[:5])}{more}")


def model_hash(model: CAMAE) -> str:
    """A short fingerprint of weights and configuration, stored with every embedding."""
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
