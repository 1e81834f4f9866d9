"""Evaluation of one system on one screen: train or load, embed, align, recall. Finished parts of a run are reused."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypedDict

import numpy as np
import pandas as pd
import torch

from camae import maps
from camae.dataloader.manifest import Manifest
from camae.dataloader.plane_batch import ValueRange
from camae.embedding import embed_screen
from camae.embedding_table import by_well, features_of, make_table, write_table
from camae.errors import CamaeError
from camae.files import write_json
from camae.maps.arrays import ArrayBackend, array_backend
from camae.maps.perturbation_map import ScreenMap, map_screen
from camae.model import load
from camae.model.interface import Model
from camae.reporting.run_folder import Score
from camae.reproduction.benchmark.benchmark_tables import PairsBySource
from camae.reproduction.model_settings import TrainingSettings
from camae.reproduction.paper.paper_systems import System
from camae.reproduction.paper.system_flops import training_flops
from camae.reproduction.systems.fixed_channels import FixedChannelModel
from camae.reproduction.systems.imagenet import TIMM_NAMES, load_imagenet
from camae.reproduction.systems.pixel import pixel_table
from camae.reproduction.systems.random import random_table
from camae.training import Run, train


@dataclass(frozen=True)
class Plan:
    """Settings of all systems on one screen.

    recipe: training settings of every system. tiles, value_range: as in `embed_screen`. weights: folder of ImageNet
    weights, files named after the timm model. channel_map: of fixed-channel models whose weights are given.
    all_checkpoints: saved steps become outcomes of their own. reader: image
    back-end. quiet: no progress of trainings and embeddings. arrays: library of maps.
    """

    manifest: Manifest
    out: Path
    pairs: PairsBySource | None
    recipe: TrainingSettings
    tiles: str = "grid"
    weights: Path | None = None
    channel_map: dict[str, str] = field(default_factory=dict)
    all_checkpoints: bool = False
    value_range: ValueRange | None = None
    reader: str | None = None
    quiet: bool = True
    arrays: ArrayBackend = field(default_factory=array_backend)


class Facts(TypedDict, total=False):
    """Sizes, costs and losses of an outcome.

    parameters, encoder_parameters: counts. dimensions: of an embedding. channel_map: image channel of each channel
    of a fixed-channel model. seconds: wall clock, train_seconds: of the training alone. run: folder, relative to the
    results folder.
    """

    parameters: int
    encoder_parameters: int
    dimensions: int
    channel_map: dict[str, str] | None
    training_crops: int
    training_flops: float
    loss: float
    val_loss: float | None
    train_seconds: float
    seconds: float
    run: str


@dataclass
class Outcome:
    """Result of a system: "done" with a table of wells and its map, or "unavailable" with the reason.

    step: of an intermediate checkpoint, None for the last. recall: by source of known pairs, read out as the paper
    does. moments: the same read out by mean and standard deviation; empty where nothing is encoded.
    """

    system: System
    status: str
    reason: str = ""
    step: int | None = None
    wells: pd.DataFrame | None = None
    mapped: ScreenMap | None = None
    recall: dict[str, Score] = field(default_factory=dict)
    moments: dict[str, Score] = field(default_factory=dict)
    facts: Facts = field(default_factory=Facts)

    @property
    def label(self) -> str:
        """The model as the table names it."""
        if self.step is None:
            return self.system.backbone
        return f"{self.system.backbone} (step {self.step:,})"

    def row(self) -> dict[str, object]:
        """Plain values for results.json."""
        return {
            "system": self.system.name,
            "family": self.system.family,
            "backbone": self.label,
            "status": self.status,
            "reason": self.reason,
            "recall": self.recall,
            "recall_moments": self.moments,
            **self.facts,
        }


def run_system(system: System, plan: Plan) -> list[Outcome]:
    """Outcomes of a system: those of its saved steps where asked for, then its own.

    User errors (CamaeError) become an "unavailable" outcome with the message as its reason.
    """
    try:
        return _trained(system, plan) if system.trains else [_untrained(system, plan)]
    except CamaeError as error:
        return [Outcome(system, "unavailable", str(error))]


def _untrained(system: System, plan: Plan) -> Outcome:
    began = time.perf_counter()
    facts: Facts = {"training_crops": 0, "training_flops": 0.0}
    folder, moments = plan.out / "embeddings" / system.name, None
    if system.family == "imagenet":
        channels = tuple(plan.channel_map) or tuple(plan.manifest.channels)
        weights = _weights(plan, system.preset)
        model = load_imagenet(system.preset, weights, channels, channel_map=plan.channel_map)
        wells = _embedded(system, plan, model, folder)
        moments = _moments(system, plan, model)
        facts.update(_model_facts(model))
    else:
        pixel = system.family == "pixel"
        wells = pixel_table(plan.manifest) if pixel else random_table(_wells_metadata(plan.manifest))
        write_table(folder / "wells.parquet", wells, {"system": system.name})
        facts.update({"parameters": 0, "encoder_parameters": 0})
    facts["seconds"] = time.perf_counter() - began
    facts["run"] = str(folder.relative_to(plan.out))
    return _evaluated(Outcome(system, "done", wells=wells, facts=facts), plan, moments)


def _weights(plan: Plan, preset: str) -> Path | None:
    """The weights of a timm model in the folder given, by its name; None where no folder is given."""
    if plan.weights is None:
        return None
    stem = TIMM_NAMES[preset]
    found = sorted(p for p in plan.weights.glob(f"{stem}*") if p.is_file())
    return found[0] if found else plan.weights / f"{stem}.safetensors"


def _wells_metadata(manifest: Manifest) -> pd.DataFrame:
    """One row per well with the manifest's metadata, as an embeddings table has, and one column of zeros."""
    metadata = manifest.table.filter(regex="^Metadata_")
    return by_well(make_table(metadata, np.zeros((len(metadata), 1))))


def _trained(system: System, plan: Plan) -> list[Outcome]:
    folder = plan.out / "runs" / system.name
    run, train_seconds = _train(system, plan, folder)
    facts, flops = _model_facts(run.model), training_flops(run.model)
    outcomes = []
    if plan.all_checkpoints:
        for row in _saved_steps(run, plan):
            outcomes.append(_checkpoint(system, plan, folder, row, {**facts, **_progress(row, flops)}))
    began = time.perf_counter()
    wells = _embedded(system, plan, run.model, plan.out / "embeddings" / system.name)
    moments = _moments(system, plan, run.model)
    facts.update(_progress(run.history[-1], flops))
    facts["train_seconds"] = train_seconds
    facts["seconds"] = train_seconds + time.perf_counter() - began
    facts["run"] = str(folder.relative_to(plan.out))
    return [*outcomes, _evaluated(Outcome(system, "done", wells=wells, facts=facts), plan, moments)]


def _train(system: System, plan: Plan, folder: Path) -> tuple[Run, float]:
    """Train the system, or read its finished run; and the seconds that training took when it ran."""
    record, began = folder / "seconds.json", time.perf_counter()
    run = train(
        plan.manifest,
        system.preset,
        out=folder,
        model_options=system.options,
        quiet=plan.quiet,
        picture_every=plan.recipe["steps"],
        keep_checkpoints=0,
        **(plan.recipe | system.recipe),
    )
    if record.is_file():
        return run, float(json.loads(record.read_text())["train_seconds"])
    seconds = time.perf_counter() - began
    write_json(record, {"train_seconds": seconds})
    return run, seconds


def _saved_steps(run: Run, plan: Plan) -> Sequence[Mapping[str, float]]:
    """Rows of the log whose step has a checkpoint, in order, without the last step."""
    rows = {int(row["step"]): row for row in run.history}
    return [
        rows[step]
        for step in sorted(rows)
        if step < plan.recipe["steps"] and _checkpoint_folder(run.path, step).is_dir()
    ]


def _checkpoint_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:08d}"


def _checkpoint(system: System, plan: Plan, folder: Path, row: Mapping[str, float], facts: Facts) -> Outcome:
    """Outcome of a saved step: an intermediate checkpoint of the table. row: of the log."""
    step, began = int(row["step"]), time.perf_counter()
    saved = _checkpoint_folder(folder, step)
    wells = _embedded(system, plan, load(saved), plan.out / "embeddings" / f"{system.name}_step{step}")
    facts["seconds"] = time.perf_counter() - began
    facts["run"] = str(saved.relative_to(plan.out))
    return _evaluated(Outcome(system, "done", step=step, wells=wells, facts=facts), plan)


def _progress(row: Mapping[str, float], flops: float) -> Facts:
    """Crops, FLOPs and losses of a row of the log. flops: of one crop."""
    return {
        "training_crops": int(row["crops"]),
        "training_flops": flops * row["crops"],
        "loss": row["loss"],
        "val_loss": row.get("val_loss"),
    }


def _model_facts(model: Model) -> Facts:
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "encoder_parameters": sum(p.numel() for p in model.encoder.parameters()),
        "channel_map": recorded_channel_map(model),
    }


def recorded_channel_map(model: Model) -> dict[str, str] | None:
    """Image channel of each channel of a fixed-channel model; None for channel-agnostic ones."""
    if not isinstance(model, FixedChannelModel):
        return None
    return {name: model.config.channel_map.get(name, name) for name in model.channels}


def _moments(system: System, plan: Plan, model: Model) -> pd.DataFrame:
    """Wells by the read-out that every system has: mean and standard deviation over places."""
    folder = plan.out / "embeddings" / f"{system.name}_moments"
    return _embedded(replace(system, pool="moments"), plan, model, folder)


def _embedded(system: System, plan: Plan, model: Model, folder: Path) -> pd.DataFrame:
    """Wells through `embed_screen`; a CA-MAE's channels side by side where all sites have the same."""
    pool = system.pool
    if system.family == "ca_mae" and (plan.manifest.table[list(plan.manifest.channels)] != "").all(axis=None):
        pool = {"mean": "per_channel", "moments": "moments_per_channel"}[pool]
    return embed_screen(
        plan.manifest,
        model,
        folder,
        pool=pool,
        tiles=plan.tiles,
        quiet=plan.quiet,
        value_range=plan.value_range,
        reader=plan.reader,
    )


def _evaluated(outcome: Outcome, plan: Plan, moments: pd.DataFrame | None = None) -> Outcome:
    """Add the map after TVN and the recall of each source, with 95 % intervals; that of `moments` too."""
    assert outcome.wells is not None
    outcome.facts["dimensions"] = features_of(outcome.wells).shape[1]
    mapped, recall = _mapped(outcome.wells, plan)
    by_moments = {} if moments is None else _mapped(moments, plan)[1]
    return replace(outcome, mapped=mapped, recall=recall, moments=by_moments)


def _mapped(wells: pd.DataFrame, plan: Plan) -> tuple[ScreenMap, dict[str, Score]]:
    """The map of wells after TVN, and the recall of each source."""
    mapped = map_screen(wells, "tvn", backend=plan.arrays)
    if plan.pairs is None:
        return mapped, {}
    table = maps.recall(mapped.vectors, mapped.names, plan.pairs, interval=True)
    return mapped, {
        str(source): {"value": r.recall, "se": r.se, "low": r.low, "high": r.high}
        for source, r in table.astype(float).iterrows()
    }


def has_gpu() -> bool:
    """Whether the paper's sizes can be trained here."""
    return torch.cuda.is_available()
