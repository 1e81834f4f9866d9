"""Reader of a run folder. Any file may be missing; a file that is there but damaged is an error."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NotRequired, TypedDict, cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from camae.embedding_table import features_of, read_table
from camae.errors import CamaeError, MissingFileError
from camae.files import read_json_lines
from camae.maps.pairs import read_pairs
from camae.text_table import as_text, numbers, read_arrow_table


class Score(TypedDict):
    """Recall (a share between 0 and 1) or a difference of two, its standard error, the ends of its 95 % interval."""

    value: float
    se: NotRequired[float]
    low: NotRequired[float]
    high: NotRequired[float]


class RunRecord(TypedDict, total=False):
    """Record of a training run, `run.json`, as far as the report reads it."""

    model: dict[str, object]
    device: str
    backends: dict[str, str]
    versions: dict[str, str]
    parameters: int


class ScreenScore(TypedDict):
    """One of several screens: recall of the trained encoder and of the best baseline, and their difference."""

    seed: int
    trained: Score
    best_baseline: str
    baseline: Score
    difference: Score


class RunSummary(TypedDict, total=False):
    """`summary.json`, what came of a run. recall, recall_without_alignment: by system. seconds: wall clock.

    read_outs: recall by encoder and read-out; read_out: the one that stands for each encoder. trained_minus: recall of
    the trained encoder less that of each baseline without training; best_baseline: the one that recalls most.
    screens: of a run on several.
    """

    wells: int
    sites: int
    seeds: int
    pairs: int
    training_crops: int
    seconds: float
    device: str
    backends: dict[str, str]
    versions: dict[str, str]
    arrays: str
    alignment: dict[str, object]
    recall: dict[str, Score]
    recall_without_alignment: dict[str, Score]
    read_outs: dict[str, dict[str, Score]]
    read_out: dict[str, str]
    trained_minus: dict[str, Score]
    trained_minus_untrained: Score
    best_baseline: str
    trained_minus_best: Score
    screen_seed: int
    screens: list[ScreenScore]


@dataclass(frozen=True)
class Reconstructions:
    """Reconstructed fields of view: R rows with a label each, C channels.

    masked, reconstruction, original: (R, C, H, W) float; masked pixels are NaN in `masked`.
    """

    masked: npt.NDArray[np.floating]
    reconstruction: npt.NDArray[np.floating]
    original: npt.NDArray[np.floating]
    labels: list[str]
    channels: list[str]


@dataclass(frozen=True)
class RunFolder:
    """A training run, or a folder of several (`models/*`) with a summary of what came of them.

    Files looked for: `summary.json`; `log.jsonl`, `run.json`, `reconstructions.npz` or `.png` here or in `models/*`;
    `recall_curves.csv`, `relationships.csv` and `map.parquet`; known pairs in `pairs.csv` or
    `screen/relationships/*.csv`.
    """

    path: Path
    name: str
    models: list[Path] = field(default_factory=list)

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Raises MissingFileError for a folder that does not exist, CamaeError for one that holds nothing of a run."""
        path = Path(path)
        if not path.is_dir():
            raise MissingFileError(f"{path}: no such run folder")
        models = [path, *sorted(p for p in path.glob("models/*") if p.is_dir())]
        run = cls(path, path.resolve().name, [m for m in models if (m / "log.jsonl").is_file()])
        if not run.models and not (path / "summary.json").is_file():
            raise CamaeError(
                f"{path}: holds neither summary.json nor log.jsonl, so there is no run to report"
            )
        return run

    @cached_property
    def summary(self) -> RunSummary:
        """`summary.json`, else the record of the first training run, else empty."""
        return cast(RunSummary, _json(self.path / "summary.json") or self.record)

    @cached_property
    def record(self) -> RunRecord:
        """`run.json` of the first training run that has one, else empty."""
        for folder in self.models:
            if record := _json(folder / "run.json"):
                return cast(RunRecord, record)
        return {}

    @cached_property
    def logs(self) -> dict[str, pd.DataFrame]:
        """Training logs by name, without a last line cut short."""
        logs = {m.name if m != self.path else self.name: _log(m / "log.jsonl") for m in self.models}
        return {name: table for name, table in logs.items() if len(table)}

    @cached_property
    def reconstructions(self) -> Reconstructions | None:
        """`reconstructions.npz` of the folder or of its first training run that has one."""
        for folder in [self.path, *self.models]:
            path = folder / "reconstructions.npz"
            if path.is_file():
                return _reconstructions(path)
        return None

    @cached_property
    def reconstruction_picture(self) -> bytes | None:
        """`reconstructions.png`, for a run that kept only the picture."""
        found = (folder / "reconstructions.png" for folder in [self.path, *self.models])
        return next((path.read_bytes() for path in found if path.is_file()), None)

    @cached_property
    def curves(self) -> pd.DataFrame | None:
        """Columns system, percentile, recall."""
        return _table(self.path / "recall_curves.csv", ("system", "percentile", "recall"))

    @cached_property
    def relationships(self) -> pd.DataFrame | None:
        """Columns a, b, cosine and perhaps known, strongest first."""
        return _table(self.path / "relationships.csv", ("a", "b", "cosine"))

    @cached_property
    def map(self) -> tuple[npt.NDArray[np.floating], list[str]] | None:
        """Vectors (n, d) and names of the map of perturbations."""
        path = self.path / "map.parquet"
        if not path.is_file():
            return None
        table, _ = read_table(path)
        if "Metadata_Perturbation" not in table:
            raise CamaeError(f"{path}: has no column Metadata_Perturbation to name the rows of the map")
        return features_of(table), table["Metadata_Perturbation"].tolist()

    @cached_property
    def known_pairs(self) -> list[tuple[str, str]]:
        """Known relationships, from the pairs file or else from the list of strongest ones."""
        for path in [self.path / "pairs.csv", *sorted(self.path.glob("screen/relationships/*.csv"))]:
            if path.is_file():
                return [(str(a), str(b)) for a, b in read_pairs(path)]
        if self.relationships is not None and "known" in self.relationships:
            known = self.relationships[self.relationships["known"]]
            return list(zip(known["a"], known["b"], strict=True))
        return []


_TABLES = ("read_outs", "model", "versions", "backends", "recall", "recall_without_alignment", "alignment")


def _json(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # JSON, UTF-8
        raise CamaeError(f"{path}: not readable as JSON ({error}); run again or delete it") from None
    if not isinstance(value, dict):
        raise CamaeError(f"{path}: holds a {type(value).__name__} where a table of names and values is meant")
    for name in _TABLES:
        if not isinstance(value.get(name, {}), dict):
            raise CamaeError(
                f"{path}: its entry {name!r} is no table of names and values; run again or delete it"
            )
    return value


def last_tenth(log: pd.DataFrame) -> pd.DataFrame:
    """Tail of a training log: its last tenth of rows, at least one, over which a loss at the end is averaged."""
    return log.tail(max(1, len(log) // 10))


def _log(path: Path) -> pd.DataFrame:
    return pd.DataFrame(read_json_lines(path))


_MEASURES = ("percentile", "recall", "cosine", "se")


def _table(path: Path, needed: tuple[str, ...]) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    arrow = read_arrow_table(path)
    table = pd.DataFrame({name: as_text(arrow.column(name).to_pandas()) for name in arrow.column_names})
    missing = [column for column in needed if column not in table]
    if missing:
        raise CamaeError(f"{path}: has no column {missing[0]}")
    if "known" in table:
        table["known"] = table["known"].str.lower().isin(["true", "1"])
    return table.assign(**{name: numbers(path, arrow, name) for name in _MEASURES if name in table})


def _reconstructions(path: Path) -> Reconstructions:
    try:
        with np.load(path, allow_pickle=False) as file:
            return Reconstructions(
                file["masked"],
                file["reconstruction"],
                file["original"],
                [str(label) for label in file["labels"]],
                [str(channel) for channel in file["channels"]],
            )
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise CamaeError(f"{path}: not readable as arrays of reconstructions ({error})") from None
