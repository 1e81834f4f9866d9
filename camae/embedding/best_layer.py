"""`layers="best"`: the block that `camae evaluate layers` stored with the model."""

from __future__ import annotations

import warnings
from dataclasses import replace
from weakref import WeakKeyDictionary

from camae.embedding.config import EmbedConfig
from camae.model.chosen_layer import ChosenLayer, layer_file, stored_layer
from camae.model.interface import Model

# Looking a choice up hashes the weights: once for each model and state of its file.
_found: WeakKeyDictionary[Model, tuple[int, ChosenLayer]] = WeakKeyDictionary()


def with_chosen_layer(config: EmbedConfig, model: Model) -> EmbedConfig:
    """The configuration with the number of the model's chosen block for "best", and a warning that says which.

    Raises CamaeError where none is stored for these weights.
    """
    if config.layers != "best":
        return config
    chosen = _chosen(model)
    sentence = f"layers='best' is block {chosen.block} of 0 to {chosen.depth - 1}: {chosen.note}"
    if config.pool != chosen.pool:
        sentence += f" (chosen for pool={chosen.pool!r}, and used here with pool={config.pool!r})"
    warnings.warn(sentence, stacklevel=3)
    return replace(config, layers=chosen.block)


def _chosen(model: Model) -> ChosenLayer:
    path = None if model.file is None else layer_file(model.file)
    changed = path.stat().st_mtime_ns if path is not None and path.is_file() else 0
    known = _found.get(model)
    if known is None or known[0] != changed:
        known = _found[model] = (changed, stored_layer(model))
    return known[1]
