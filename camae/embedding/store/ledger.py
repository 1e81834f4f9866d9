"""Ledger: model, manifest and options of an output folder, fixed at the first start."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from camae.dataloader.plane_batch import ValueRange
from camae.errors import CamaeError
from camae.files import write_json

LEDGER = "ledger.json"


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Ledger of an output: in `ledger.json`, and in the metadata of every file beside it.

    model, model_hash, standardization, crop: of the model. manifest_hash: fingerprint of the manifest, which has so
    many sites. tiles, overlap, pool, layers, value_range, dtype, intensity: what the vectors are, as in `EmbedConfig`,
    but layers are counted from 0, () for the last one's output, and dtype None is float32.
    sites_per_shard, tokens_per_pass: how the screen was split. backends: of each kind of op at the first start; they
    decide rounding alone, and another machine may continue with others. origin: of a model from the hub, repository,
    revision, commit, file and sha256; model_hash decides whether another model may continue.
    """

    model: str
    model_hash: str
    manifest_hash: str
    sites: int
    standardization: str
    crop: int
    tiles: str
    overlap: float
    pool: str
    layers: tuple[int, ...]
    value_range: ValueRange | None
    dtype: str | None
    sites_per_shard: int
    tokens_per_pass: int
    intensity: bool = False
    backends: Mapping[str, str] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """JSON values, as in files of the first version: layers are null when there are none, and backends absent.

        A model that is not from the hub has no origin in them, vectors without intensities no intensity.
        """
        span = self.value_range
        lists = {"layers": list(self.layers) or None, "value_range": None if span is None else list(span)}
        values = asdict(self) | lists
        for name in ("backends", "origin", "intensity"):
            if not values[name]:
                del values[name]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Ledger:
        """The inverse of `to_json`. Raises ValueError for values that are no ledger."""
        try:
            layers, span = tuple(values["layers"] or ()), values["value_range"]
            return cls(**(dict(values) | {"layers": layers, "value_range": span and tuple(span)}))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a ledger: {error}") from None

    @property
    def shard_rows(self) -> list[range]:
        """Manifest rows of every shard."""
        step = self.sites_per_shard
        return [range(i, min(i + step, self.sites)) for i in range(0, self.sites, step)]


_HASHES = {"model_hash": "of the weights", "manifest_hash": "of rows and paths in their order"}


def claim(folder: Path, wanted: Ledger, *, any_tokens_per_pass: bool) -> Ledger:
    """The ledger of an output folder, written at the first start.

    any_tokens_per_pass: take the number of the folder's ledger, where it has one.
    Raises CamaeError for a folder of another model, manifest or option.
    """
    path = folder / LEDGER
    if not path.exists():
        write_json(path, wanted.to_json())
        return wanted
    found = _read(path)
    if found.tiles != "cover":  # where an overlap changes nothing
        found = replace(found, overlap=wanted.overlap)
    if any_tokens_per_pass:
        wanted = replace(wanted, tokens_per_pass=found.tokens_per_pass)
    compared = [f.name for f in fields(Ledger) if f.name not in ("backends", "origin")]
    if changed := [name for name in compared if getattr(found, name) != getattr(wanted, name)]:
        hashes = [f"{name} is {text}" for name, text in _HASHES.items() if name in changed]
        meaning = f" ({', '.join(hashes)})" if hashes else ""
        raise CamaeError(
            f"{folder} holds embeddings made with another {', '.join(changed)}{meaning}; "
            "choose another folder, output is never mixed"
        )
    return found


def _read(path: Path) -> Ledger:
    try:
        return Ledger.from_json(json.loads(path.read_text(encoding="utf-8")))
    except ValueError:  # JSON and UTF-8 errors are ValueErrors too
        raise CamaeError(f"{path}: not a readable ledger; choose another folder") from None
