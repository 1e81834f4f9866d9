"""Chosen layer: the encoder block that `camae evaluate layers` found best, in a JSON file beside the model file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from camae.errors import CamaeError
from camae.files import write_json
from camae.model.interface import Model, TransformerConfig
from camae.model.weights import model_hash

_FORMAT = "camae-layer-1"
_SUFFIX = ".best_layer.json"


@dataclass(frozen=True)
class ChosenLayer:
    """Chosen encoder block of a model.

    block: counted from 0. depth: blocks of the encoder. pool: pooling that it was chosen for. note: one sentence on
    where and how it was chosen.
    """

    block: int
    depth: int
    pool: str
    note: str


def layer_file(model_file: Path) -> Path:
    """Where the choice for a model file is kept: model.safetensors has model.best_layer.json beside it."""
    return model_file.with_name(model_file.stem + _SUFFIX)


def store_layer(model: Model, chosen: ChosenLayer) -> Path | None:
    """Write the choice beside the model's file, atomically; its path, or None for a model that has no file."""
    if model.file is None:
        return None
    path = layer_file(model.file)
    return write_json(path, {"format": _FORMAT, "model_hash": model_hash(model)} | asdict(chosen))


def stored_layer(model: Model) -> ChosenLayer:
    """The choice stored for a model.

    Raises CamaeError where there is none, or it is damaged or of other weights.
    """
    again = "run `camae evaluate layers` on it"
    if model.file is None:
        raise CamaeError(
            f"layers='best' needs a model read from a file, beside which the choice is kept; name the path of the "
            f"model, and {again}"
        )
    path = layer_file(model.file)
    if not path.is_file():
        raise CamaeError(f"{path} does not exist, so no layer was chosen for this model; {again}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        values = None
    chosen = _parsed(values) if isinstance(values, dict) else None
    depth = model.config.depth if isinstance(model.config, TransformerConfig) else 0
    if chosen is None or not (0 <= chosen.block < chosen.depth == depth):
        raise CamaeError(f"{path} is damaged; {again} again")
    if values["model_hash"] != model_hash(model):
        raise CamaeError(f"{path} was written for other weights than the model has now; {again} again")
    return chosen


def _parsed(values: Mapping[str, object]) -> ChosenLayer | None:
    """The choice in a file's values; None where they are not those that `store_layer` writes."""
    block, depth, pool, note = (values.get(name) for name in ("block", "depth", "pool", "note"))
    if values.get("format") != _FORMAT or type(block) is not int or type(depth) is not int:
        return None
    if not isinstance(pool, str) or not isinstance(note, str) or "model_hash" not in values:
        return None
    return ChosenLayer(block, depth, pool, note)
