"""Benchmark command (`camae benchmark`): tables of one or more models on one screen, as CSV, JSON and HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, cast, get_args

import numpy as np
import pandas as pd

from camae.errors import CamaeError
from camae.files import path_of, remove_unfinished, write_json, write_text
from camae.maps.annotations import annotated
from camae.maps.arrays import ArrayBackend, array_backend, to_numpy
from camae.maps.distances import Distance
from camae.maps.nulls import Null
from camae.maps.pairs import read_pairs_folder
from camae.maps.perturbation_map import Components
from camae.maps.profiles import ProfileTable, column
from camae.maps.refchemdb import DEFAULT_TIER
from camae.maps.replicates import ReplicateUnit
from camae.maps.screens import ScreenColumns, read_screen
from camae.maps.shrinkage import Shrinkage
from camae.omissions import Omissions
from camae.reporting import html
from camae.reporting.figures import recall_against_percentile
from camae.reporting.style import svg
from camae.reproduction.benchmark.benchmark_tables import (
    GeneTables,
    Modality,
    PairsBySource,
    ScreenProfiles,
    gene_tables,
    recall_after_tvn,
    recall_by_alignment,
    recall_curves,
    recall_of_matched_pairs,
)
from camae.reproduction.benchmark.condition_table import retrieved_by_condition
from camae.reproduction.benchmark.feature_table import category_scores, read_cellprofiler
from camae.reproduction.benchmark.gene_sets import gene_set_recall, read_gene_sets
from camae.reproduction.benchmark.mechanism_table import mechanism_accuracy
from camae.reproduction.benchmark.model_files import ProfileFiles, profiles_by_model
from camae.reproduction.benchmark.recall_page import recall_html
from camae.reproduction.benchmark.retrieval_page import retrieval_html
from camae.reproduction.benchmark.retrieval_tables import (
    RetrievalOptions,
    activity_tables,
)
from camae.text_table import write_csv

Cell: TypeAlias = str | int | float | bool | None
BenchmarkResults: TypeAlias = dict[str, list[dict[str, Cell]] | dict[str, list[str]] | str]


@dataclass(frozen=True)
class _Settings:
    """Which tables are made, and of what. experiment, target: columns; unit, components: as in `run_benchmark`."""

    columns: ScreenColumns
    experiment: str | None
    target: str | None
    unit: ReplicateUnit
    components: Components
    method: str
    shrinkage: Shrinkage | None
    arrays: ArrayBackend
    pairs: PairsBySource | None
    tvn: bool
    genes: GeneTables | None
    retrieval: RetrievalOptions
    activity: bool
    gene_sets: Mapping[str, Sequence[str]] | None
    cellprofiler: pd.DataFrame | None
    annotations: Sequence[str | Path]
    conditions: Sequence[str]
    modality: str
    mechanism: str | None
    compound: str | None
    dose: str | None


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
    refchemdb_tier: str = DEFAULT_TIER,
    tvn: bool = True,
    arm_correction: bool | None = None,
    null: Null = "auto",
    null_size: int = 10_000,
    distance: Distance = "cosine",
    threshold: float = 0.05,
    permutations: int = 1000,
    activity: bool = True,
    mechanism: str | None = None,
    compound: str | None = None,
    dose: str | None = None,
    seed: int = 0,
    backend: str | ArrayBackend = "auto",
    unit: ReplicateUnit = "well",
    components: Components = "half_controls",
    method: str = "tvn",
    shrinkage: Shrinkage | None = None,
    annotations: Sequence[str | Path] = (),
    condition: Sequence[str] = (),
    modality: str = "compound",
    gene_sets: str | Path | None = None,
    cellprofiler: str | Path | None = None,
    features: Literal["known", "all"] = "known",
) -> BenchmarkResults:
    """Benchmark one or more models' profiles of the same screen and write a results folder.

    embeddings: model name -> profile file (.parquet, .csv(.gz), .tsv(.gz), .h5ad) or the files of its plates; or a
    list of files, also as "model=file". Files of a list that hold different plates and the same features are one
    screen; files of the same plates are a model each, named by the file's stem. pairs: file or folder of known pairs
    (`read_pairs_folder`), None for Table 4 alone; refchemdb_tier: the lowest confidence of RefChemDB's. plate,
    experiment: columns of the batches. control, negative: the column and its value that mark negative controls.
    target: column of targets joined by "|", for siblings. arms, expression: gene tables for the chromosome-arm
    correction. tvn: whether Table 3 (recall after TVN) is made. arm_correction: whether it gets a second row, TVN with
    arms corrected; None does where both gene tables are given.
    null, null_size, distance, threshold: of average precision, as in `maps.retrieval`. permutations: of activity and
    calibration, as in `maps.activity`; activity: whether these two are made. mechanism: column of mechanisms of
    action; compound (the perturbation by default) and dose: columns that make a treatment.
    backend: "numpy", "cupy", or "auto": CuPy where it runs; benchmark.json says which under `arrays`. unit: "well"
    averages sites by well, "site" counts them as replicates, None refuses them. components: of alignments by principal
    components, as in `maps.map_profiles` and so in `camae map`. method: alignment of Table 3 and the curves, one of
    `maps.METHODS`. shrinkage: of "tvn_shrunk" and "replicate_whitening", None for theirs.
    annotations: tables joined to the profiles by a column that both have, for columns such as targets. condition:
    columns whose values divide Table 4 (cell type, time), which is then averaged over them. modality: "compound",
    "crispr" or "orf", or the column that says so: siblings are ranked by |cosine| for compounds, by cosine for CRISPR,
    and ORFs have none. gene_sets: folder of gene lists, for Table 5 (recall at 5 % false positives); cellprofiler:
    table of features by well, for Figure 6. features: "known" takes the columns that are features of a known tool,
    "all" also the columns of numbers that are not (places, identifiers).
    Writes table2.csv, table3.csv, arm_bias.csv, table4.csv, table4_mean.csv (over conditions), table5.csv, figure6.csv,
    curves.csv, replicates.csv (recall of random pairs with as many replicates), activity.csv, agreement.csv,
    calibration.csv, calibration_p_values.csv and mechanisms.csv (those that apply), benchmark.json, section.html,
    benchmark.html and left_out.csv; every table has a first column `model`.
    Returns benchmark.json.
    Raises CamaeError or MissingFileError for unusable input, MissingBackendError when CuPy cannot run.
    """
    if repeated := sorted({name for name in condition if list(condition).count(name) > 1}):
        raise CamaeError(f"condition names the column {repeated[0]!r} twice; give each once")
    sets, measured = read_gene_sets(gene_sets), read_cellprofiler(cellprofiler)
    genes, omitted = gene_tables(arms, expression, arm_correction, tvn), Omissions()
    known = None if pairs is None else read_pairs_folder(pairs, omitted, refchemdb_tier)
    about_pairs = [f"{pairs}: {line}" for line in omitted.lines()]
    settings = _Settings(
        ScreenColumns(perturbation, plate, control, negative),
        experiment,
        target,
        unit,
        components,
        method,
        shrinkage,
        array_backend(backend),
        known,
        tvn,
        genes,
        RetrievalOptions(null_size, seed, null, distance, threshold, permutations),
        activity,
        None if gene_sets is None else sets,
        measured,
        annotations,
        condition,
        modality,
        mechanism,
        compound,
        dose,
    )
    if mechanism is None and (compound is not None or dose is not None):
        raise CamaeError(
            "compound= and dose= are of the table of mechanisms: give mechanism= too, or leave them out"
        )
    models = profiles_by_model(embeddings, plate, features)
    results = _write(
        path_of(out, "out"), *_benchmarked(models, settings, about_pairs, omitted), settings.arrays
    )
    omitted.write(out)
    return results


def _benchmarked(
    models: Mapping[str, ProfileTable], settings: _Settings, shared: list[str], omitted: Omissions
) -> tuple[dict[str, pd.DataFrame], dict[str, list[str]]]:
    """Every table with the models' rows one after the other, and each model's notes; notes omissions in `omitted`."""
    tables: dict[str, list[pd.DataFrame]] = {}
    notes: dict[str, list[str]] = {}
    for model, profiles in models.items():
        omitted.extend(profiles.omitted)
        screen = _screen(profiles, settings)
        screen.add_notes(shared)
        for name, table in _tables(screen, settings).items():
            table.insert(0, "model", model)
            tables.setdefault(name, []).append(table)
        notes[model] = screen.notes
    return {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}, notes


def _tables(screen: ScreenProfiles, settings: _Settings) -> dict[str, pd.DataFrame]:
    """The tables of one model by name of file, empty ones left out."""
    s = settings
    found: dict[str, pd.DataFrame] = {}
    if s.pairs is not None:
        found["table2"] = recall_by_alignment(screen, s.pairs)
        if s.tvn:
            found["table3"], bias = recall_after_tvn(screen, s.pairs, s.genes)
            if bias is not None:
                found["arm_bias"] = bias
        found["curves"] = recall_curves(screen, s.pairs)
        found["replicates"] = recall_of_matched_pairs(screen, s.pairs, s.retrieval.seed)
        if s.gene_sets is not None:
            found["table5"] = gene_set_recall(screen, s.pairs, s.gene_sets)
    if s.cellprofiler is not None:
        found["figure6"] = _features_told(screen, s.cellprofiler)
    found["table4"], found["table4_mean"] = retrieved_by_condition(screen, s.retrieval)
    if s.activity:
        found |= activity_tables(screen, s.retrieval)
    found["mechanisms"] = mechanism_accuracy(screen, s.retrieval.seed)
    return {name: table for name, table in found.items() if len(table)}


def _features_told(screen: ScreenProfiles, features: pd.DataFrame) -> pd.DataFrame:
    """Figure 6 of the profiles as given: category and median R^2; empty, with a note, where wells do not meet."""
    if screen.well is None:
        scores = None
    else:
        meta = pd.DataFrame({"Metadata_Plate": screen.plate, "Metadata_Well": screen.well})
        scores = category_scores(meta, to_numpy(screen.x), features)
    if scores is None:
        screen.add_notes(
            ["Figure 6: fewer than two plates of the screen are in the table of CellProfiler features"]
        )
        return pd.DataFrame()
    return scores.rename("median_r2").rename_axis("category").reset_index()


def _screen(profiles: ProfileTable, settings: _Settings) -> ScreenProfiles:
    said = []
    for path in settings.annotations:
        profiles, line = annotated(profiles, path)
        said.append(line)
    screen = read_screen(profiles, settings.columns, settings.unit)
    assert screen.plate is not None  # its column is always asked for

    def optional(name: str | None, what: str) -> np.ndarray | None:
        return None if name is None else column(screen.meta, name, what)

    parts = [column(screen.meta, name, "condition") for name in settings.conditions]
    fixed = settings.modality if settings.modality in get_args(Modality) else None
    return ScreenProfiles(
        settings.arrays.asarray(screen.x),
        screen.perturbation,
        screen.plate,
        screen.control,
        optional(settings.experiment, "experiment"),
        optional(settings.target, "target"),
        optional("Metadata_Well" if "Metadata_Well" in screen.meta.columns else None, "well"),
        settings.components,
        [*screen.notes, *said],
        optional(settings.mechanism, "mechanism"),
        optional(settings.compound, "compound"),
        optional(settings.dose, "dose"),
        method=settings.method,
        shrinkage=settings.shrinkage,
        condition=np.array([" ".join(row) for row in zip(*parts, strict=True)]) if parts else None,
        modalities=None if fixed else optional(settings.modality, "modality"),
        modality=cast(Modality, fixed or "compound"),
    )


def _write(
    out: Path, tables: Mapping[str, pd.DataFrame], notes: dict[str, list[str]], arrays: ArrayBackend
) -> BenchmarkResults:
    results: BenchmarkResults = {name: _records(table) for name, table in tables.items()}
    results["notes"] = notes
    results["arrays"] = str(arrays)
    remove_unfinished(out)
    for name, table in tables.items():
        write_csv(out / f"{name}.csv", table)
    body = _html(tables, notes) + html.paragraph(f"arrays: {arrays}")
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
    parts = [*recall_html(tables), *retrieval_html(tables)]
    if "curves" in tables:
        for source, rows in tables["curves"].groupby("source", sort=False):
            picture = recall_against_percentile(rows.rename(columns={"model": "system"}))
            caption = f"{source}: recall against the share of most extreme cosines (Figure 5, right)."
            parts.append(html.figure(svg(picture, f"curve-{source}"), caption))
    parts += [html.paragraph(f"{model}: {line}") for model, lines in notes.items() for line in lines]
    return "\n".join(parts)
