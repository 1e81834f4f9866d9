"""One system on one screen: train or load, embed through `embed_screen`, align, recall. Nothing is done twice."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from camae import maps
from camae.dataloader.manifest import Manifest
from camae.embedding import embed_screen
from camae.embedding_table import by_well, features_of, make_table, write_table
from camae.errors import CamaeError
from camae.files import write_json
from camae.maps.screen import ScreenMap, map_screen
from camae.model import load
from camae.reproduction.paper.paper_systems import System
from camae.reproduction.paper.system_flops import training_flops
from camae.reproduction.systems.imagenet import TIMM_NAMES, load_imagenet
from camae.reproduction.systems.pixel import pixel_table
from camae.reproduction.systems.random import random_table
from camae.training import train

Pairs = Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is run on the screen.

    recipe: steps, batch_size, seed ... of every training. tiles: as in `embed_screen`. weights: folder of ImageNet
    weights, files named after the timm model. channel_map: of fixed-channel models whose weights are given.
    """

    manifest: Manifest
    out: Path
    pairs: Pairs | None
    recipe: dict[str, Any]
    tiles: str = "grid"
    weights: Path | None = None
    channel_map: dict[str, str] = field(default_factory=dict)
    bootstrap: int = 200
    all_checkpoints: bool = False
    value_range: tuple[float, float] | None = None


@dataclass
class Outcome:
    """A system's row: "done" with a table of wells and its map, or "unavailable" with the reason.

    step: of an intermediate checkpoint. facts: parameters, training_crops, training_flops, seconds, run ...
    """

    system: System
    status: str
    reason: str = ""
    step: int | None = None
    wells: pd.DataFrame | None = None
    map: ScreenMap | None = None
    recall: dict[str, dict[str, float]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The model as the table names it."""
        return self.system.backbone + (f" (step {self.step:,})" if self.step is not None else "")

    def row(self) -> dict[str, Any]:
        """Plain values for results.json."""
        return {
            "system": self.system.name,
            "family": self.system.family,
            "backbone": self.label,
            "status": self.status,
            "reason": self.reason,
            "recall": self.recall,
        } | self.facts


def run_system(system: System, plan: Plan) -> list[Outcome]:
    """The system's outcome and, before it, those of its saved steps where asked for. User errors become reasons."""
    try:
        if system.family in ("random", "pixel", "imagenet"):
            return [_untrained(system, plan)]
        return _trained(system, plan)
    except CamaeError as error:
        return [Outcome(system, "unavailable", str(error))]


def _untrained(system: System, plan: Plan) -> Outcome:
    began = time.perf_counter()
    facts: dict[str, Any] = {"training_crops": 0, "training_flops": 0.0}
    folder = plan.out / "embeddings" / system.name
    if system.family == "imagenet":
        channels = tuple(plan.channel_map) or tuple(plan.manifest.channels)
        model = load_imagenet(
            system.preset, _weights(plan, system.preset), channels, channel_map=plan.channel_map
        )
        wells = _embedded(system, plan, model, folder)
        facts |= _size(model) | {"channel_map": _recorded_map(model, plan)}
    else:
        pixel = system.family == "pixel"
        wells = pixel_table(plan.manifest) if pixel else random_table(_wells_like(plan))
        write_table(folder / "wells.parquet", wells, {"system": system.name})
        facts |= {"parameters": 0, "encoder_parameters": 0}
    facts |= {"seconds": time.perf_counter() - began, "run": str(folder.relative_to(plan.out))}
    return _evaluated(Outcome(system, "done", wells=wells, facts=facts), plan)


def _weights(plan: Plan, preset: str) -> Path | None:
    """The weights of a timm model in the folder given, by its name; None where no folder is given."""
    if plan.weights is None:
        return None
    stem = TIMM_NAMES[preset]
    found = sorted(p for p in plan.weights.glob(f"{stem}*") if p.is_file())
    return found[0] if found else plan.weights / f"{stem}.safetensors"


def _wells_like(plan: Plan) -> pd.DataFrame:
    """One row per well with the manifest's metadata, as an embedding's table has."""
    metadata = plan.manifest.table.filter(regex="^Metadata_")
    return by_well(make_table(metadata, np.zeros((len(metadata), 1))))


def _trained(system: System, plan: Plan) -> list[Outcome]:
    folder, began = plan.out / "runs" / system.name, time.perf_counter()
    known = _seconds_before(folder)
    run = train(
        plan.manifest,
        system.preset,
        folder,
        model_options=system.options,
        quiet=True,
        picture_every=plan.recipe["steps"],
        keep_checkpoints=0,
        **(plan.recipe | system.recipe),
    )
    seconds = {"train_seconds": known or time.perf_counter() - began}
    facts: dict[str, Any] = _size(run.model) | {"channel_map": _recorded_map(run.model, plan)}
    flops = training_flops(run.model)
    log = {row["step"]: row for row in run.history}
    steps = sorted(log) if plan.all_checkpoints else []
    outcomes = [
        _checkpoint(system, plan, folder, step, log, facts, flops)
        for step in steps
        if step < plan.recipe["steps"] and (folder / "checkpoints" / f"step_{step:08d}").is_dir()
    ]
    write_json(folder / "seconds.json", seconds)
    began = time.perf_counter()
    wells = _embedded(system, plan, run.model, plan.out / "embeddings" / system.name)
    last = run.history[-1]
    facts = facts | seconds | _progress(last, flops) | {"run": str(folder.relative_to(plan.out))}
    facts["seconds"] = seconds["train_seconds"] + time.perf_counter() - began
    return [*outcomes, _evaluated(Outcome(system, "done", wells=wells, facts=facts), plan)]


def _seconds_before(folder: Path) -> float | None:
    """How long a training that is already there took."""
    file = folder / "seconds.json"
    return float(json.loads(file.read_text())["train_seconds"]) if file.is_file() else None


def _checkpoint(
    system: System,
    plan: Plan,
    folder: Path,
    step: int,
    log: dict[int, dict[str, Any]],
    facts: dict[str, Any],
    flops: float,
) -> Outcome:
    """A saved step as a row of its own: the table's intermediate checkpoints."""
    saved = folder / "checkpoints" / f"step_{step:08d}"
    began = time.perf_counter()
    wells = _embedded(system, plan, load(saved), plan.out / "embeddings" / f"{system.name}_step{step}")
    facts = facts | _progress(log[step], flops) | {"run": str(saved.relative_to(plan.out))}
    facts["seconds"] = time.perf_counter() - began
    return _evaluated(Outcome(system, "done", step=step, wells=wells, facts=facts), plan)


def _progress(row: dict[str, Any], flops: float) -> dict[str, Any]:
    return {
        "training_crops": row["crops"],
        "training_flops": flops * row["crops"],
        "loss": row["loss"],
        "val_loss": row.get("val_loss"),
    }


def _size(model: Any) -> dict[str, int]:
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "encoder_parameters": sum(p.numel() for p in model.encoder.parameters()),
    }


def _recorded_map(model: Any, plan: Plan) -> dict[str, str] | None:
    """Which image channel each channel of a fixed-channel model was; None for channel-agnostic ones."""
    if not hasattr(model.config, "channel_map"):
        return None
    return {name: model.config.channel_map.get(name, name) for name in model.channels}


def _embedded(system: System, plan: Plan, model: Any, folder: Path) -> pd.DataFrame:
    """Wells through `embed_screen`; a CA-MAE's channels side by side where all sites have the same."""
    pool = system.pool
    if system.family == "ca_mae" and (plan.manifest.table[list(plan.manifest.channels)] != "").all(axis=None):
        pool = "per_channel"
    return embed_screen(
        plan.manifest, model, folder, pool=pool, tiles=plan.tiles, quiet=True, value_range=plan.value_range
    )


def _evaluated(outcome: Outcome, plan: Plan) -> Outcome:
    """Add the map after TVN and the recall of each source, with bootstrap standard errors."""
    assert outcome.wells is not None
    outcome.facts["dimensions"] = features_of(outcome.wells).shape[1]
    mapped = map_screen(outcome.wells, "tvn")
    recall = {}
    if plan.pairs is not None:
        table = maps.recall(mapped.vectors, mapped.names, plan.pairs, bootstrap=plan.bootstrap)
        recall = {str(s): {"value": float(r.recall), "se": float(r.se)} for s, r in table.iterrows()}
    return replace(outcome, map=mapped, recall=recall)


def has_gpu() -> bool:
    """Whether the paper's sizes can be trained here."""
    return torch.cuda.is_available()
