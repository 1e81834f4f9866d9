"""Which model `camae.embed` uses when none is given: `camae.use(path)`, else the variable CAMAE_MODEL."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from camae.errors import CamaeError
from camae.model.ca_mae import CAMAE
from camae.model.checkpoint import load

VARIABLE = "CAMAE_MODEL"
_loaded: dict[str, CAMAE] = {}
_chosen: list[CAMAE] = []


def use(model: str | Path | CAMAE | None, *, device: str | None = None) -> CAMAE | None:
    """Name the model that `camae.embed` uses from now on: a path or a loaded model; None forgets it."""
    _chosen.clear()
    if model is None:
        return None
    _chosen.append(resolve_model(model, device))
    return _chosen[0]


def resolve_model(model: str | Path | CAMAE | None, device: str | None = None) -> CAMAE:
    """The model to use: the one given, the one chosen by `use`, or the one CAMAE_MODEL names.

    A model given by path stays loaded for the next call.
    """
    if model is None and _chosen:
        return _chosen[0]
    if model is None:
        model = os.environ.get(VARIABLE)
        if not model:
            raise CamaeError(
                f"no model: pass model=, or name one with camae.use(path) or the environment variable {VARIABLE}"
            )
    if isinstance(model, torch.nn.Module):
        return model.to(device) if device else model
    key = f"{Path(model).resolve()}|{device}"
    if key not in _loaded:
        _loaded.clear()  # one model at a time: they are large
        _loaded[key] = load(model, device=device or "cpu")
    return _loaded[key]
