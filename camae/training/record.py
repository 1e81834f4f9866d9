"""What a run folder says about the run besides its log: `run.json`, `bad_sites.json`, the settings it began with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from camae.dataloader.mixture import Source
from camae.errors import CamaeError
from camae.files import write_json
from camae.training.config import Recipe
from camae.versions import versions

# Settings that may differ when a run is continued: none changes which crops and masks a step sees. Passes and
# ranks change the order of sums, and which samples stochastic depth drops.
_FREE = {
    "checkpoint_every",
    "checkpoint_minutes",
    "keep_checkpoints",
    "log_every",
    "detail_every",
    "picture_every",
    "workers",
    "device",
    "reader",
    "tensorboard",
    "probe",
    "recompute",
    "recompute_selective",
    "val_every",
    "ema_final",
    "accumulate",
    "micro_batch",
    "token_budget",
    "parallel",
    "spike",
    "rollback_after",
    "max_bad_share",
}


def run_record(
    model: Any, training: Sequence[Source], validation: Sequence[Source], **facts: Any
) -> dict[str, Any]:
    """What ran: versions, back-ends, counts, data sets; `facts` are added."""
    return {
        "versions": versions(),
        "backends": dataclasses.asdict(model.backends),
        "model": model.config.to_dict(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "encoder_parameters": sum(p.numel() for p in model.encoder.parameters()),
        "training_sites": sum(len(s.manifest) for s in training),
        "validation_sites": sum(len(s.manifest) for s in validation),
        "data": described(training),
    } | facts


def described(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """The data sets in plain types."""
    return [
        {
            "name": s.name,
            "sites": len(s.manifest),
            "weight": s.weight,
            "channels": list(s.manifest.channels),
        }
        for s in sources
    ]


def check_same_recipe(state: dict[str, Any], recipe: Recipe, folder: Path) -> None:
    """Settings that change what a step computes must be those the run began with.

    state: a checkpoint's. Raises CamaeError that lists those that differ.
    """
    before, now = state["recipe"], plain(recipe.to_dict())
    free = set(_FREE)
    if set(before.get("channels", ())) <= set(now["channels"]):
        free.add("channels")  # new ones get decoders
    if changed := [k for k in now if k not in free and before.get(k) != now[k]]:
        raise CamaeError(
            f"{folder}: the run was started with other settings ({', '.join(changed)}); "
            "use those, or another folder with init= to continue from its weights"
        )


def write_bad_sites(out: Path, found: Sequence[dict[str, dict[int, str]]]) -> None:
    """Add sites that could not be read to `bad_sites.json`: data set -> row -> why."""
    path = out / "bad_sites.json"
    try:
        known: dict[str, dict[str, str]] = json.loads(path.read_text())
    except (OSError, ValueError):
        known = {}
    merged = {name: dict(rows) for name, rows in known.items()}
    for bad in found:
        for name, rows in bad.items():
            merged.setdefault(name, {}).update({str(row): why for row, why in rows.items()})
    if merged != known:
        write_json(
            path, {n: dict(sorted(rows.items(), key=lambda r: int(r[0]))) for n, rows in merged.items()}
        )


def plain(value: Any) -> Any:
    """Tuples as lists, as they come back from JSON."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value
