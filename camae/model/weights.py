"""Models on disk: one safetensors file whose header carries the configuration."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode

from camae.errors import CamaeError, MissingFileError
from camae.files import write_atomic
from camae.model import registry as families
from camae.model.openphenom import is_openphenom, translate
from camae.model.tensor_files import check_shapes, read_tensors

if TYPE_CHECKING:
    from camae.model.ca_mae import CAMAE

MODEL_FILE = "model.safetensors"
_FORMAT = "camae-model-1"
# Weights of others, in a folder.
_WEIGHT_FILES = (MODEL_FILE, "pytorch_model.bin", "model.pt", "model.ckpt")


def save(model: CAMAE, path: str | Path, **about: Any) -> Path:
    """Write `model` to a safetensors file, atomically. `about`: JSON values kept beside the configuration."""
    metadata = {
        "format": _FORMAT,
        "config": json.dumps(model.config.to_dict()),
        "about": json.dumps(about),
    }
    tensors = {k: v.detach().contiguous().cpu() for k, v in model.state_dict().items()}
    return write_atomic(path, lambda p: save_file(tensors, p, metadata))


def load(path: str | Path, *, device: str | torch.device = "cpu", **changes: Any) -> Any:
    """Load a model: a run folder of `camae.train`, one of its checkpoints, a model file, or released weights.

    Released CA-MAE weights (OpenPhenom): the file as published (a torch file, whatever its name), a safetensors
    file, or a folder with one of them. What a file is shows in its content; no pickle is run.
    changes: override configuration fields that hold no weights: `mask_ratio`; for released weights also
        `bias_layout` ("timm<=1.0.24", the default, or "mlp") and `channels` (default: the six RxRx stains).
        For models of a fixed channel set: `channel_map`, {model's channel: image's channel}.
    Raises CamaeError when the file is not complete: missing, unexpected and wrongly shaped tensors are listed.
    """
    file = find_model_file(path)
    metadata, tensors = read_tensors(file)
    if metadata.get("format") == _FORMAT:
        config, state = families.config_from(json.loads(metadata["config"]) | changes), tensors
    elif is_openphenom(tensors):
        config, state = translate(file, tensors, **changes)
    else:
        raise CamaeError(
            f"{file}: neither a camae model (no configuration in it) nor released CA-MAE weights (no tensor named "
            f"encoder.vit_backbone...); its first tensors are {', '.join(sorted(tensors)[:3]) or 'none'}"
        )
    return build(file, config, state).to(device)


def build(file: Path, config: Any, state: dict[str, torch.Tensor]) -> Any:
    """A model that takes over the tensors of `state`, without making any first; in eval mode."""
    with torch.device("meta"), _Unfilled():
        model = families.model_class(config)(config)
    check_state(file, model.state_dict(), state)
    model.load_state_dict({name: tensor.contiguous() for name, tensor in state.items()}, assign=True)
    return model.eval()


_FILLING = (torch.Tensor.normal_, torch.Tensor.uniform_)


class _Unfilled(TorchFunctionMode):
    """Leaves random initialization out: on the meta device it computes nothing, but loads sympy to do so."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _FILLING or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def find_model_file(path: str | Path) -> Path:
    """The model file that `path` (a file, a run folder, a checkpoint folder) stands for."""
    path = Path(path)
    if path.is_file():
        return path
    if not path.exists():
        raise MissingFileError(f"{path}: no such model, file or folder")
    for candidate in (
        *(path / name for name in _WEIGHT_FILES),
        *sorted(path.glob("checkpoints/step_*/" + MODEL_FILE), reverse=True),
    ):
        if candidate.is_file():
            return candidate
    raise CamaeError(f"{path}: a folder without {MODEL_FILE} or checkpoints in it; name a run of camae.train")


def check_state(file: Path, expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> None:
    """Complete or refused: raise CamaeError that lists what differs."""
    check_shapes(file, *({k: tuple(t.shape) for k, t in state.items()} for state in (expected, found)))


def model_hash(model: CAMAE) -> str:
    """A short fingerprint of weights and configuration, stored with every embedding."""
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
