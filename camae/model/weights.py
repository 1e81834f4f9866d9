"""Model files: weights as safetensors, with the configuration in the header."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from camae.errors import CamaeError, MissingFileError
from camae.files import write_atomic
from camae.model import registry
from camae.model.backends import Backends, BackendSettings
from camae.model.devices import check_device
from camae.model.hub import WEIGHT_FILES, Origin, fetch, is_hub_name
from camae.model.interface import Config, CountsBlocks, Model
from camae.model.openphenom import is_openphenom, translate
from camae.model.tensor_files import Shapes, check_shapes, read_tensors, save_tensors

MODEL_FILE = "model.safetensors"
_FORMAT = "camae-model-1"
TRAINING_ONLY = "training_only"  # the submodule of a model whose weights no model file holds


def save(model: Model, path: str | Path, **about: object) -> Path:
    """Save a model to a safetensors file, atomically; returns its path. Equal models make equal files.

    about: JSON values kept beside the configuration. Raises OutputError where the disk refuses.
    """
    metadata = {
        "format": _FORMAT,
        "config": json.dumps(model.config.to_dict(), sort_keys=True),
        "about": json.dumps(about, sort_keys=True),
    }
    tensors = without_heads(model.state_dict())
    return write_atomic(path, lambda p: save_tensors(tensors, p, metadata))


def without_heads(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a model without those of heads that only training needs."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(f"{TRAINING_ONLY}.")}


def load(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    backends: BackendSettings = None,
    **changes: object,
) -> Model:
    """Load a model: a run folder of `camae.train`, one of its checkpoints, a model file, or released weights.

    "hf://owner/name@revision" names weights on the Hugging Face hub, with "/file" at the end one of its files (extra
    `hub`); `model.origin` then says commit and SHA-256, and every output records them.
    Released CA-MAE weights (OpenPhenom): the file as published (a torch file, whatever its name), a safetensors
    file, or a folder with one of them. What a file is shows in its content; no pickle is run.
    backends: of the model's ops, {"attention": "triton"} or "attention=triton"; see `Backends`.
    changes: override configuration fields that hold no weights: `mask_ratio`; for released weights also
        `bias_layout` ("timm<=1.0.24", the default, or "mlp") and `channels` (default: the six RxRx stains).
        For models of a fixed channel set: `channel_map`, {model's channel: image's channel}.
    Raises CamaeError when the file is not complete: missing, unexpected and wrongly shaped tensors are listed; and for
    a configuration that is damaged or not that of its tensors, and for weights that are no finite numbers;
    MissingBackendError for a device that is not here.
    """
    check_device(device)
    file = find_model_file(path)
    metadata, tensors = read_tensors(file, lambda m, shapes: _check_config(file, m, shapes, changes))
    if metadata.get("format") == _FORMAT:
        config = _stored_config(file, metadata, changes)
        state = tensors
    elif is_openphenom(tensors):
        config, state = translate(file, tensors, **changes)
    else:
        raise CamaeError(
            f"{file}: neither a camae model (no configuration in it) nor released CA-MAE weights (no tensor named "
            f"encoder.vit_backbone...); its first tensors are {', '.join(sorted(tensors)[:3]) or 'none'}"
        )
    model = build(file, config, state)
    model.origin = fetch(path).origin if is_hub_name(path) else _stored_origin(metadata)
    model.file = file
    if backends:
        model.use_backends(Backends.of(backends))
    return model.to(device)


def _stored_origin(metadata: Mapping[str, str]) -> Origin:
    """Where the weights of a converted file came from; empty where it does not say."""
    try:
        origin = json.loads(metadata["about"])["origin"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return {str(k): str(v) for k, v in origin.items()} if isinstance(origin, dict) else {}


def _stored_config(file: Path, metadata: Mapping[str, str], changes: Mapping[str, object]) -> Config:
    """The configuration in a file's header, with changes. Raises CamaeError, naming the file, where it is damaged."""
    try:
        values = json.loads(metadata["config"])
    except (KeyError, ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise CamaeError(f"{file}: the configuration in its header is damaged; take another copy of the file")
    try:
        return registry.config_from({**values, **changes})
    except CamaeError as error:
        raise CamaeError(f"{file}: {error}") from None


def _check_config(
    file: Path, metadata: Mapping[str, str], shapes: Shapes, changes: Mapping[str, object]
) -> None:
    """Compare a file's configuration with the shapes of its tensors, before anything is made or read."""
    if metadata.get("format") != _FORMAT:
        return
    config = _stored_config(file, metadata, changes)
    if isinstance(config, CountsBlocks) and config.n_blocks > len(shapes):
        raise CamaeError(
            f"{file}: its configuration has {config.n_blocks:,} blocks and the file {len(shapes):,} tensors: one of "
            "the two is damaged; take another copy of the file"
        )
    check_shapes(file, {k: tuple(t.shape) for k, t in _unfilled(file, config).state_dict().items()}, shapes)


def convert(source: str | Path, destination: str | Path, **changes: object) -> Path:
    """Convert a model (released weights, a run, a checkpoint) to a model file; returns its path.

    destination: a file name, or a folder, in which it becomes model.safetensors. changes: as in `load`.
    Raises CamaeError for a source that `load` refuses, or a destination that exists.
    """
    target = Path(destination)
    if target.is_dir() or not target.suffix:
        target = target / MODEL_FILE
    if target.exists():
        raise CamaeError(f"{target} exists; name another file, or delete it first")
    model = load(source, device="cpu", backends=None, **changes)
    about: dict[str, object] = {"converted_from": Path(source).name}
    if model.origin:
        about["origin"] = dict(model.origin)
    return save(model, target, **about)


def build(file: Path, config: Config, state: dict[str, torch.Tensor]) -> Model:
    """A model of the tensors of `state`, which are taken over, not copied; in eval mode. Errors as `load`."""
    model = _unfilled(file, config)
    check_state(file, model.state_dict(), state)
    model.load_state_dict({name: tensor.contiguous() for name, tensor in state.items()}, assign=True)
    return model.eval()


def _unfilled(file: Path, config: Config) -> Model:
    """A model of a configuration, without memory for its weights."""
    try:
        with torch.device("meta"), _Unfilled():
            return registry.from_config(config)
    except CamaeError as error:
        raise CamaeError(f"{file}: {error}") from None


_FILLING = (torch.Tensor.normal_, torch.Tensor.uniform_)


class _Unfilled(TorchFunctionMode):
    """Skips random initialization: on the meta device it computes nothing, but loads sympy to do so."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if func in _FILLING or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def find_model_file(path: str | Path) -> Path:
    """Model file at `path`, a file, a run folder, a checkpoint folder, or a name of the hub.

    Raises MissingFileError where nothing is there, CamaeError for a folder without a model.
    """
    if not isinstance(path, str | os.PathLike):
        raise CamaeError(f"the model is named by a {type(path).__name__}; give the path or name as text")
    if is_hub_name(path):
        return fetch(path).path
    if not str(path):
        raise CamaeError("the name of the model is empty; is a variable of the shell unset?")
    if "://" in str(path):
        raise CamaeError(f"{path}: models are read from files and folders, or named hf://owner/name@revision")
    path = Path(path)
    if path.is_file():
        return path
    if not path.exists():
        raise MissingFileError(f"{path}: no such model, file or folder")
    for candidate in (
        *(path / name for name in WEIGHT_FILES),
        *sorted(path.glob("checkpoints/step_*/" + MODEL_FILE), reverse=True),
    ):
        if candidate.is_file():
            return candidate
    raise CamaeError(f"{path}: a folder without {MODEL_FILE} or checkpoints in it; name a run of camae.train")


def check_state(file: Path, expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> None:
    """Raise CamaeError that lists missing, unexpected and wrongly shaped tensors."""
    check_shapes(file, *({k: tuple(t.shape) for k, t in state.items()} for state in (expected, found)))


def model_hash(model: Model) -> str:
    """Hash of weights and configuration, 16 hex digits, stored with every embedding."""
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
