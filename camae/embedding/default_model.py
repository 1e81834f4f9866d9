"""Which model `camae.embed` uses when none is given: `camae.use(path)`, else the variable CAMAE_MODEL."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from camae.errors import CamaeError, MissingFileError
from camae.model.weights import find_model_file, load

VARIABLE = "CAMAE_MODEL"
_loaded: dict[tuple, Any] = {}
_chosen: list[Any] = []


def use(model: str | Path | nn.Module | None, *, device: str | torch.device | None = None) -> Any:
    """Name the model that `camae.embed` uses from now on: a path or a loaded model; None forgets it."""
    _chosen.clear()
    if model is None:
        return None
    _chosen.append(resolve_model(model, device))
    return _chosen[0]


def default_device() -> str:
    """The GPU of this process (LOCAL_RANK under torchrun), or the CPU where there is none."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def resolve_model(model: str | Path | nn.Module | None, device: str | torch.device | None = None) -> Any:
    """The model to use: the one given, the one chosen by `use`, or the one CAMAE_MODEL names.

    device: where it is put; by default a model stays where it is, and one read from a path goes to
        `default_device()`. It stays loaded for the next call, until its file changes.
    """
    if model is None and _chosen:
        model = _chosen[0]
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
    if isinstance(model, nn.Module):
        return model.to(device) if device else model
    if not isinstance(model, str | Path):
        raise CamaeError(f"model is a {type(model).__name__}; give a model of camae.load, or a path")
    file = find_model_file(model)
    where = str(device or default_device())
    key = (file.resolve(), file.stat().st_mtime_ns, where)
    if key not in _loaded:
        _loaded.clear()  # one model at a time: they are large
        _loaded[key] = load(model, device=where)
    return _loaded[key]
