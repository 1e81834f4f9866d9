"""Run record: `run.json`, `bad_sites.json`, and the check that a continued run has the settings it began with."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

import torch

from camae.dataloader.mixture import Source
from camae.errors import CamaeError, OutputError
from camae.files import write_json, write_text
from camae.model.hub import fetch, is_hub_name
from camae.model.interface import Model
from camae.training.config import MAY_CHANGE_ON_RESUME, TrainConfig
from camae.training.toml_file import to_toml
from camae.versions import versions


class DataSetRecord(TypedDict):
    """One data set of a run. fingerprint: of the manifest; absent from runs of earlier versions."""

    name: str
    sites: int
    fingerprint: NotRequired[str]
    weight: float
    channels: list[str]


class RunRecord(TypedDict):
    """Content of `run.json`: what ran, on what, with which data."""

    versions: dict[str, str]
    backends: dict[str, str]
    model: Mapping[str, object]
    parameters: int
    encoder_parameters: int
    training_sites: int
    validation_sites: int
    data: list[DataSetRecord]
    device: str
    precision: str
    processes: int
    decoders_started_anew: list[str]
    init_origin: NotRequired[dict[str, str]]  # of `init` by a name of the hub: repository, commit, sha256 ...


class CheckpointState(TypedDict):
    """JSON part of a checkpoint.

    recipe: the settings of the run (`TrainConfig.to_dict`). spikes: `SpikeGuard.state()`. crops: crops seen so far.
    token_budget: most tokens of a pass, set or chosen; None for whole batches. precision: where it was measured.
    """

    step: int
    recipe: dict[str, object]
    crops: int
    channels: list[str]
    data: list[DataSetRecord]
    spikes: list[float]
    world_size: int
    token_budget: NotRequired[int | None]
    precision: NotRequired[str | None]


def run_record(
    model: Model,
    training: Sequence[Source],
    validation: Sequence[Source],
    *,
    device: str,
    precision: str,
    processes: int,
    decoders_started_anew: list[str],
) -> RunRecord:
    """The record of a run. decoders_started_anew: channels whose decoders did not come from `init`."""
    return {
        "versions": versions(),
        "backends": model.backends.names(
            device, torch.bfloat16 if precision == "bf16" else torch.float32, model.op_sizes()
        ),
        "model": model.config.to_dict(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "encoder_parameters": sum(p.numel() for p in model.encoder.parameters()),
        "training_sites": sum(len(s.manifest) for s in training),
        "validation_sites": sum(len(s.manifest) for s in validation),
        "data": data_record(training),
        "device": device,
        "precision": precision,
        "processes": processes,
        "decoders_started_anew": decoders_started_anew,
    }


def write_run_folder(out: Path, config: TrainConfig, record: RunRecord) -> None:
    """Make the run's folder, with the resolved settings in `config.toml` and the record in `run.json`."""
    if config.init and is_hub_name(config.init):
        record["init_origin"] = _first_origin(out) or dict(fetch(config.init).origin)
    write_text(out / "config.toml", to_toml(config.to_dict()))
    write_json(out / "run.json", record)


def _first_origin(out: Path) -> dict[str, str]:
    """What a run that is continued began with: its branch of the hub may have moved since."""
    try:
        return json.loads((out / "run.json").read_text(encoding="utf-8")).get("init_origin", {})
    except (OSError, ValueError, AttributeError):
        return {}


def data_record(sources: Sequence[Source]) -> list[DataSetRecord]:
    """The data sets of a run in plain types."""
    return [
        {
            "name": s.name,
            "sites": len(s.manifest),
            "fingerprint": s.manifest.fingerprint(),
            "weight": s.weight,
            "channels": list(s.manifest.channels),
        }
        for s in sources
    ]


def is_same_data(before: Sequence[DataSetRecord], now: Sequence[DataSetRecord]) -> bool:
    """Whether a run goes on with the sites that it began with, in the same order, as far as its record says."""
    return len(before) == len(now) and all(new | old == new for old, new in zip(before, now, strict=True))


def config_record(config: TrainConfig) -> dict[str, object]:
    """The settings of a run as they come back from JSON."""
    return json.loads(json.dumps(config.to_dict(), default=str))


def check_same_config(state: CheckpointState, config: TrainConfig, folder: Path) -> None:
    """Check that settings which change what a step computes are those the run began with.

    state: a checkpoint's, in `folder`. Raises CamaeError that lists those that differ.
    """
    # A setting that the run's version did not have was at what is now its default.
    before, now = config_record(TrainConfig()) | state["recipe"], config_record(config)
    free = set(MAY_CHANGE_ON_RESUME)
    if set(config.channels).issuperset(_strings(before.get("channels"))):
        free.add("channels")  # new ones get decoders
    if changed := [k for k in now if k not in free and before.get(k) != now[k]]:
        raise CamaeError(
            f"{folder}: the run was started with other settings ({', '.join(changed)}); "
            "use those, or another folder with init= to continue from its weights"
        )


def _strings(value: object) -> Iterable[str]:
    return map(str, value) if isinstance(value, list) else ()


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
        ordered = {n: dict(sorted(rows.items(), key=lambda r: int(r[0]))) for n, rows in merged.items()}
        try:
            write_json(path, ordered)
        except OutputError as error:  # costs the list until the next checkpoint, not the run
            warnings.warn(str(error), stacklevel=2)
