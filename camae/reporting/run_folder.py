"""Reads what a run left behind. Every piece may be missing; a piece that is there but damaged is an error."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from camae.embedding_table import features_of, read_table
from camae.errors import CamaeError, MissingFileError
from camae.files import read_json_lines


@dataclass(frozen=True)
class RunFolder:
    """A training run, or a folder of several (`models/*`) with a summary of what came of them.

    Pieces looked for: `summary.json`; `log.jsonl`, `run.json`, `reconstructions.npz` or `.png` here or in `models/*`;
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
    def summary(self) -> dict[str, Any]:
        """`summary.json`, else the record of the first training run, else empty."""
        summary = _json(self.path / "summary.json")
        return summary or self.record

    @cached_property
    def record(self) -> dict[str, Any]:
        """`run.json` of the first training run: versions, device, back-ends, model."""
        return next((record for m in self.models if (record := _json(m / "run.json"))), {})

    @cached_property
    def logs(self) -> dict[str, pd.DataFrame]:
        """Training logs by name, without a last line cut short."""
        logs = {m.name if m != self.path else self.name: _log(m / "log.jsonl") for m in self.models}
        return {name: table for name, table in logs.items() if len(table)}

    @cached_property
    def reconstructions(self) -> dict[str, npt.NDArray[Any]] | None:
        """Arrays masked, reconstruction, original (R, C, H, W), labels (R,), channels (C,)."""
        for folder in [self.path, *self.models]:
            path = folder / "reconstructions.npz"
            if path.is_file():
                return _arrays(path, ("masked", "reconstruction", "original", "labels", "channels"))
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
    def map(self) -> tuple[npt.NDArray[Any], list[str]] | None:
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
                table = pd.read_csv(path, dtype=str, keep_default_na=False)
                return list(zip(table.iloc[:, 0], table.iloc[:, 1], strict=True))
        if self.relationships is not None and "known" in self.relationships:
            known = self.relationships[self.relationships["known"].astype(bool)]
            return list(zip(known["a"], known["b"], strict=True))
        return []


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CamaeError(f"{path}: not readable as JSON ({error}); run again or delete it") from None
    if not isinstance(value, dict):
        raise CamaeError(f"{path}: holds a {type(value).__name__} where a table of names and values is meant")
    return value


def _log(path: Path) -> pd.DataFrame:
    return pd.DataFrame(read_json_lines(path))


def _table(path: Path, needed: tuple[str, ...]) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    try:
        table = pd.read_csv(path, keep_default_na=False, dtype={"a": str, "b": str, "system": str})
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise CamaeError(f"{path}: not readable as a CSV table ({error})") from None
    missing = [column for column in needed if column not in table]
    if missing:
        raise CamaeError(f"{path}: has no column {missing[0]}")
    return table


def _arrays(path: Path, needed: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in needed}
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise CamaeError(f"{path}: not readable as arrays of reconstructions ({error})") from None
