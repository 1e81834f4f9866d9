"""Default model of `camae.embed`: the one of `camae.use(path)`, else of the environment variable CAMAE_MODEL."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import overload

import torch

from camae.errors import CamaeError, MissingFileError
from camae.model.devices import check_device
from camae.model.interface import Model
from camae.model.weights import find_model_file, load

VARIABLE = "CAMAE_MODEL"
ModelSource = Model | str | Path  # a loaded model, or the path of one
_loaded: dict[tuple[Path, int, int, str], Model] = {}
_chosen: dict[str, Model] = {}
_loading = threading.Lock()  # one thread reads a file, the others wait for its model


@overload
def use(model: ModelSource, *, device: str | torch.device | None = None) -> Model: ...
@overload
def use(model: None, *, device: str | torch.device | None = None) -> None: ...
def use(model: ModelSource | None, *, device: str | torch.device | None = None) -> Model | None:
    """Set the model that `camae.embed` uses from now on, in all threads: a path or a loaded model; None forgets it.

    Returns the loaded model.
    """
    if model is None:
        _chosen.clear()
        return None
    chosen = resolve_model(model, device)
    _chosen["model"] = chosen
    return chosen


def default_device() -> str:
    """The GPU of this process (LOCAL_RANK under torchrun), or the CPU where there is none."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def resolve_model(model: ModelSource | None, device: str | torch.device | None = None) -> Model:
    """The model to use: the one given, the one chosen by `use`, or the one CAMAE_MODEL names.

    device: where it is put; by default a model stays where it is, and one read from a path goes to
        `default_device()`. It stays loaded for the next call, until its file changes.
    """
    if device is not None:
        check_device(device)
    if model is None:
        model = _chosen.get("model")
    if model is None:
        model = os.environ.get(VARIABLE)
        if not model:
            raise CamaeError(
                f"no model: pass model=, or name one with camae.use(path) or the environment variable {VARIABLE}"
            )
        try:
            find_model_file(model)
        except MissingFileError as error:
            raise MissingFileError(f"the environment variable {VARIABLE} names no model: {error}") from None
    if isinstance(model, Model):
        return model.to(device) if device else model
    if not isinstance(model, str | Path):
        raise CamaeError(f"model is a {type(model).__name__}; give a model of camae.load, or a path")
    file = find_model_file(model)
    where = str(device or default_device())
    status = file.stat()
    key = (file.resolve(), status.st_mtime_ns, status.st_size, where)
    with _loading:
        loaded = _loaded.get(key)
        if loaded is None:
            _loaded.clear()  # one model at a time: they are large
            loaded = _loaded[key] = load(model, device=where)
    return loaded


def _unlock() -> None:
    global _loading
    _loading = threading.Lock()


os.register_at_fork(after_in_child=_unlock)
