"""Benchmark command (`camae benchmark`): tables of one or more models on one screen, as CSV, JSON and HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd

from camae.errors import CamaeError, MissingBackendError
from camae.files import write_json, write_text
from camae.maps.arms import read_arms, read_expression
from camae.maps.pairs import read_pairs_folder
from camae.maps.profiles import column, read_profiles
from camae.reporting import html
from camae.reporting.figures import recall_against_percentile
from camae.reporting.style import svg
from camae.reproduction.benchmark.benchmark_tables import (
    GeneTables,
    PairsBySource,
    ScreenProfiles,
    fraction_retrieved,
    recall_after_tvn,
    recall_by_alignment,
    recall_curves,
)

BACKENDS = ("numpy", "cupy")
ProfileFiles: TypeAlias = Mapping[str, str | Path] | Sequence[str | Path]
Cell: TypeAlias = str | int | float | bool | None
BenchmarkResults: TypeAlias = dict[str, list[dict[str, Cell]] | dict[str, list[str]]]


@dataclass(frozen=True)
class _Columns:
    """Metadata columns of the profiles; negative: the value of `control` that marks negative controls."""

    perturbation: str
    plate: str
    experiment: str | None
    target: str | None
    control: str
    negative: str


@dataclass(frozen=True)
class _Settings:
    """Which tables are made, and of what."""

    pairs: PairsBySource | None
    tvn: bool
    genes: GeneTables | None
    bootstrap: int
    null_size: int
    seed: int


def run_benchmark(
    embeddings: ProfileFiles,
    pairs: str | Path | None,
    out: str | Path,
    *,
    perturbation: str = "Metadata_Perturbation",
    plate: str = "Metadata_Plate",
    experiment: str | None = None,
    control: str = "Metadata_control_type",
    negative: str = "negcon",
    target: str | None = None,
    arms: str | Path | None = None,
    expression: str | Path | None = None,
    tvn: bool = True,
    arm_correction: bool | None = None,
    bootstrap: int = 200,
    null_size: int = 10_000,
    seed: int = 0,
    backend: str = "numpy",
) -> BenchmarkResults:
    """Benchmark one or more models' profiles of the same screen and write a results folder.

    embeddings: model name -> profile file (.parquet, .csv(.gz), .tsv(.gz), .h5ad), or a list of files (the model is
    the file's stem). pairs: file or folder of known pairs (`read_pairs_folder`), None for Table 4 alone. plate,
    experiment: columns of the batches. control, negative: the column and its value that mark negative controls.
    target: column of targets joined by "|", for siblings. arms, expression: gene tables for the chromosome-arm
    correction. tvn: whether Table 3 (recall after TVN) is made. arm_correction: whether it gets a second row, TVN
    with arms corrected; None does where both gene tables are given. backend: "numpy" or "cupy".
    Writes table2.csv, table3.csv, arm_bias.csv, table4.csv, curves.csv (those that apply), benchmark.json,
    section.html and benchmark.html; every table has a first column `model`. Returns what benchmark.json holds.
    Raises CamaeError or MissingFileError for unusable input, MissingBackendError when CuPy is asked for and absent.
    """
    genes = _gene_tables(arms, expression, arm_correction, tvn)
    known = None if pairs is None else read_pairs_folder(pairs)
    columns = _Columns(perturbation, plate, experiment, target, control, negative)
    settings = _Settings(known, tvn, genes, bootstrap, null_size, seed)
    tables: dict[str, list[pd.DataFrame]] = {}
    notes: dict[str, list[str]] = {}
    for model, path in _named_files(embeddings).items():
        screen = _read_screen(path, columns, backend)
        for name, table in _tables(screen, settings).items():
            table.insert(0, "model", model)
            tables.setdefault(name, []).append(table)
        notes[model] = screen.notes
    joined = {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}
    return _write(Path(out), joined, notes)


def _gene_tables(
    arms: str | Path | None, expression: str | Path | None, arm_correction: bool | None, tvn: bool
) -> GeneTables | None:
    """The gene tables of the arm correction, None where it is not made. Raises CamaeError where they are missing."""
    needed = "arms (gene, chrom_arm_name) and expression (gene, zfpkm)"
    if (arms is None) != (expression is None):
        raise CamaeError(f"the arm correction needs both tables: {needed}")
    if arm_correction and (arms is None or not tvn):
        raise CamaeError(f"the arm correction follows TVN and needs two gene tables: {needed}")
    if arms is None or expression is None or arm_correction is False:
        return None
    return GeneTables(read_arms(arms), read_expression(expression))


def _tables(screen: ScreenProfiles, settings: _Settings) -> dict[str, pd.DataFrame]:
    """The tables of one model by name of file, empty ones left out."""
    s = settings
    found: dict[str, pd.DataFrame] = {}
    if s.pairs is not None:
        found["table2"] = recall_by_alignment(screen, s.pairs, s.bootstrap, s.seed)
        if s.tvn:
            found["table3"], bias = recall_after_tvn(screen, s.pairs, s.genes, s.bootstrap, s.seed)
            if bias is not None:
                found["arm_bias"] = bias
        found["curves"] = recall_curves(screen, s.pairs)
    found["table4"] = fraction_retrieved(screen, s.null_size, s.seed)
    return {name: table for name, table in found.items() if len(table)}


def _named_files(embeddings: ProfileFiles) -> dict[str, Path]:
    """Profile files by model; of a list, the model is the file's stem, or its path where stems repeat."""
    if isinstance(embeddings, Mapping):
        return {name: Path(path) for name, path in embeddings.items()}
    paths = [Path(path) for path in ([embeddings] if isinstance(embeddings, str | Path) else embeddings)]
    if not paths:
        raise CamaeError("no embeddings are given; name at least one profile file")
    names = [path.name.split(".")[0] for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return dict(zip(names, paths, strict=True))


def _read_screen(path: Path, columns: _Columns, backend: str) -> ScreenProfiles:
    meta, x = read_profiles(path)

    def optional(name: str | None, what: str) -> np.ndarray | None:
        return None if name is None else column(meta, name, what)

    is_control = column(meta, columns.control, "negative controls") == columns.negative
    if not is_control.any():
        raise CamaeError(
            f"{path}: {columns.control} says '{columns.negative}' nowhere, so there are no negative controls"
        )
    return ScreenProfiles(
        _on_backend(x, backend),
        column(meta, columns.perturbation, "perturbation"),
        column(meta, columns.plate, "plate"),
        is_control,
        optional(columns.experiment, "experiment"),
        optional(columns.target, "target"),
        optional("Metadata_Well" if "Metadata_Well" in meta.columns else None, "well"),
    )


def _on_backend(x: np.ndarray, backend: str) -> np.ndarray:
    """x as it is, or as a CuPy array (typed as NumPy's, whose interface it has)."""
    if backend not in BACKENDS:
        raise CamaeError(f"unknown backend '{backend}'; choose {' or '.join(BACKENDS)}")
    if backend == "numpy":
        return x
    try:
        import cupy
    except ImportError:
        raise MissingBackendError(
            "CuPy is not installed; pip install 'camae[gpu]', or use backend numpy"
        ) from None
    return cupy.asarray(x)


def _write(out: Path, tables: Mapping[str, pd.DataFrame], notes: dict[str, list[str]]) -> BenchmarkResults:
    results: BenchmarkResults = {name: _records(table) for name, table in tables.items()}
    results["notes"] = notes
    for name, table in tables.items():
        write_text(out / f"{name}.csv", table.to_csv(index=False))
    body = _html(tables, notes)
    write_text(out / "section.html", body)
    sections = [html.Section("benchmark", "Benchmark", body)]
    page = html.page("Map benchmark", ", ".join(notes), "", sections, "Written by camae benchmark.")
    write_text(out / "benchmark.html", page)
    write_json(out / "benchmark.json", results)
    return results


def _records(table: pd.DataFrame) -> list[dict[str, Cell]]:
    """Rows of plain JSON values; NaN becomes None."""
    return [
        {str(name): _plain(value) for name, value in row.items()}
        for row in table.astype(object).to_dict("records")
    ]


def _plain(value: object) -> Cell:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return None if math.isnan(value) else value
    return value if value is None or isinstance(value, int) else str(value)


def _html(tables: Mapping[str, pd.DataFrame], notes: Mapping[str, list[str]]) -> str:
    """HTML of all tables, models side by side, and the recall curves."""
    parts = []
    for name, row, title in (
        ("table2", "alignment", "Recall of known pairs in both 5 % tails, by alignment (Table 2)"),
        ("table3", "step", "Recall after TVN (Table 3)"),
    ):
        if name in tables:
            parts.append(f"<h3>{title}</h3>" + _recall_html(tables[name], row))
    if "table4" in tables:
        parts.append("<h3>Fraction retrieved (Table 4)</h3>" + _retrieval_html(tables["table4"]))
    if "curves" in tables:
        for source, rows in tables["curves"].groupby("source", sort=False):
            picture = recall_against_percentile(rows.rename(columns={"model": "system"}))
            caption = f"{source}: recall against the share of most extreme cosines (Figure 5, right)."
            parts.append(html.figure(svg(picture, f"curve-{source}"), caption))
    parts += [html.paragraph(f"{model}: {line}") for model, lines in notes.items() for line in lines]
    return "\n".join(parts)


def _recall_html(table: pd.DataFrame, row: str) -> str:
    """One line per model and value of the column `row`, one column per source."""
    wide = table.pivot_table(index=["model", row], columns="source", values="recall", sort=False)
    cells = [
        [*map(str, index), *(f"{value:.3f}" for value in values)]
        for index, values in zip(wide.index, wide.to_numpy(), strict=True)
    ]
    header = ["model", row, *map(str, wide.columns)]
    return html.table(header, cells, numeric=range(2, len(header)))


def _retrieval_html(table: pd.DataFrame) -> str:
    cells = [
        [r.model, r.task, r.alignment, str(r.n_groups), str(r.n_retrieved), f"{r.fraction_retrieved:.3f}"]
        for r in table.itertuples()
    ]
    header = ["model", "task", "alignment", "groups", "retrieved", "fraction"]
    return html.table(header, cells, numeric=range(3, 6))
