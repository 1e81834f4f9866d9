"""Paper command (`camae paper`): run a choice of the paper's systems on one screen, write its tables and figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias, cast

from rich.console import Console

from camae.dataloader.datasets import read_manifest
from camae.dataloader.manifest import Manifest
from camae.dataloader.plane_batch import ValueRange
from camae.embedding.config import ReadOptions
from camae.errors import CamaeError
from camae.files import path_of
from camae.maps.arrays import ArrayBackend, array_backend
from camae.maps.pairs import read_pairs_folder
from camae.progress import count_bar, plain_printer
from camae.reproduction.benchmark.benchmark_tables import GeneTables, PairsBySource, gene_tables
from camae.reproduction.benchmark.feature_table import read_cellprofiler
from camae.reproduction.benchmark.gene_sets import read_gene_sets
from camae.reproduction.demo.generate_screen import generate
from camae.reproduction.model_settings import TrainingSettings
from camae.reproduction.paper import paper_tables
from camae.reproduction.paper.evaluate_system import Outcome, Plan, has_gpu, run_system
from camae.reproduction.paper.paper_figures import write_figures
from camae.reproduction.paper.paper_page import (
    PaperResults,
    family_results,
    published_rows,
    table_rows,
    write_results,
)
from camae.reproduction.paper.paper_settings import settings_lines, settings_rows
from camae.reproduction.paper.paper_systems import SIZES, System, chosen
from camae.reproduction.paper.read_out_table import read_out_table
from camae.versions import versions

DEFAULT_OUT = "camae-paper"
# Steps and crops per step at the smallest size, sized for two cores: the whole run under 30 minutes, --quick under 5.
SMALLEST_RUN: TrainingSettings = {"steps": 160, "batch_size": 16, "checkpoint_every": 80, "val": "plate"}
QUICK_RUN: TrainingSettings = {"steps": 12, "batch_size": 8, "checkpoint_every": 6, "val": "plate"}
# The batch of `camae.training.recipes` for all systems, so that a step is as many crops for each of them.
PAPER_RUN: TrainingSettings = {"steps": 10_000, "batch_size": 16_384, "micro_batch": 64}

Say: TypeAlias = Callable[[str], None]


@dataclass(frozen=True)
class _Screen:
    """A screen to run on. name: as tables say it. pairs: known pairs by source, None where there are none."""

    manifest: Manifest
    name: str
    pairs: PairsBySource | None


def run_paper(
    data: str | Path | Manifest | None = None,
    out: str | Path = DEFAULT_OUT,
    *,
    systems: Sequence[str] | None = None,
    size: str = "smallest",
    quick: bool = False,
    checkpoints: str = "last",
    pairs: str | Path | None = None,
    weights: str | Path | None = None,
    channel_map: Mapping[str, str] | None = None,
    gene_sets: str | Path | None = None,
    cellprofiler: str | Path | None = None,
    target: str | None = None,
    condition: Sequence[str] = (),
    modality: str = "compound",
    arms: str | Path | None = None,
    expression: str | Path | None = None,
    tiles: str = "grid",
    value_range: ValueRange | None = None,
    recipe: Mapping[str, object] | None = None,
    reader: str | None = None,
    reading: ReadOptions | None = None,
    backend: str | ArrayBackend = "auto",
    quiet: bool = False,
    console: Console | None = None,
) -> PaperResults:
    """Train, embed and benchmark the paper's systems on one screen; returns what results.json holds.

    data: a screen as `camae.train` takes it; without it a demo screen is made in `out/screen`.
    systems: names or families of `paper_systems`, default all of the size. size: "smallest" (two cores) or "paper"
    (needs a GPU, and recipe={"steps": ...}). quick: few steps and a small demo screen: shows that all parts work.
    checkpoints: "last", or "all" for a row of every saved step with its loss. pairs: file or folder of known pairs.
    weights: folder of ImageNet weights named after timm's models; channel_map: {model's channel: image's channel} of
    these. gene_sets: folder of gene lists (Table 5). cellprofiler: table of features by plate and well (Figure 6).
    target: column of targets joined by "|" (siblings of Table 4); condition, modality: as in `run_benchmark`. arms,
    expression: gene tables, for recall with chromosome arms corrected in Table 3. recipe: training settings of all.
    reader: image back-end. reading: how a folder is read. backend: library of maps, "numpy", "cupy" or "auto" (CuPy
    where it runs).
    quiet: a line for each system. Writes results.json, paper.html, tables, figures and models; a second call continues.
    """
    _check_checkpoints(checkpoints)
    out, say, began, arrays = (
        path_of(out, "out"),
        plain_printer(console),
        time.perf_counter(),
        array_backend(backend),
    )
    say(f"arrays: {arrays}")
    todo, sets = chosen(size, systems), read_gene_sets(gene_sets)
    features, genes = read_cellprofiler(cellprofiler), gene_tables(arms, expression)
    screen = _open_screen(data, out, quick, pairs, say, reading or ReadOptions())
    settings = _training_settings(size, quick, _with_images(recipe, reader, value_range), screen.manifest)
    plan = Plan(
        *(screen.manifest, out, screen.pairs, settings),
        tiles=tiles,
        weights=None if weights is None else Path(weights),
        channel_map=dict(channel_map or {}),
        all_checkpoints=checkpoints == "all",
        value_range=value_range,
        reader=reader,
        quiet=quiet,
        arrays=arrays,
    )
    resolved = settings_rows(todo, settings, screen.manifest)
    for line in settings_lines(resolved):
        say(line)
    outcomes = _run_systems(todo, plan, size, say)
    retrieval = partial(
        paper_tables.retrieval_table,
        target=target,
        null_size=500 if quick else 10_000,
        condition=condition,
        modality=modality,
    )
    tables = _tables(outcomes, screen, sets, genes, retrieval)
    results = _results(screen, plan, size, quick, outcomes, tables)
    results["settings"] = resolved
    results["figures"] = write_figures(outcomes, plan, features)
    return _written(out, results, tables, screen.manifest, began, say)


def _check_checkpoints(checkpoints: str) -> None:
    if checkpoints not in ("last", "all"):
        raise CamaeError(f"checkpoints {checkpoints!r} is not 'last' or 'all'")


def _written(
    out: Path,
    results: PaperResults,
    tables: Sequence[paper_tables.PaperTable],
    manifest: Manifest,
    began: float,
    say: Say,
) -> PaperResults:
    """Write the results, and say what the screen left out and where everything is; returns the results."""
    results["seconds"] = time.perf_counter() - began
    write_results(out, results, tables)
    manifest.left_out.write(out)
    for line in (*manifest.notes, *manifest.left_out.lines()):
        say(line)
    say(f"{results['seconds']:.0f} s: {out / 'results.json'}, {out / 'paper.html'}")
    return results


def _results(
    screen: _Screen,
    plan: Plan,
    size: str,
    quick: bool,
    outcomes: Sequence[Outcome],
    tables: Sequence[paper_tables.PaperTable],
) -> PaperResults:
    """results.json without settings, figures and seconds, which are set when they are known."""
    return {
        "screen": screen.name,
        "sites": len(screen.manifest),
        "channels": list(screen.manifest.channels),
        "size": size,
        "quick": quick,
        "recipe": plan.recipe,
        "settings": [],
        "alignment": "TVN by plate, at most half as many components as controls",
        "arrays": str(plan.arrays),
        "families": family_results(SIZES[size], outcomes),
        "tables": table_rows(tables),
        "figures": {},
        "published": published_rows(tables),
        "versions": versions(),
        "seconds": 0.0,
    }


def _training_settings(
    size: str, quick: bool, recipe: Mapping[str, object], manifest: Manifest
) -> TrainingSettings:
    """Settings of every training: those of the size, changed by the user's `recipe`.

    `camae.train` checks their names. A plate is held out only where there are two.
    """
    settings = PAPER_RUN
    if size == "smallest":
        settings = QUICK_RUN if quick else SMALLEST_RUN
    merged = cast(TrainingSettings, {**settings, **recipe})
    if merged.get("val") == "plate" and manifest.table["Metadata_Plate"].nunique() < 2:
        del merged["val"]
    return merged


def _with_images(
    recipe: Mapping[str, object] | None, reader: str | None, value_range: ValueRange | None
) -> Mapping[str, object]:
    """Training settings with the back-end and range of the images, where the user's do not name them."""
    given = {"reader": reader, "value_range": value_range}
    return {name: value for name, value in given.items() if value is not None} | dict(recipe or {})


def _open_screen(
    data: str | Path | Manifest | None,
    out: Path,
    quick: bool,
    pairs: str | Path | None,
    say: Say,
    reading: ReadOptions,
) -> _Screen:
    """The screen given, or a demo screen with its own pairs."""
    known = None if pairs is None else read_pairs_folder(pairs)
    if isinstance(data, Manifest):
        return _Screen(reading.read(data), "this screen", known)
    if data is not None:
        return _Screen(reading.read(data), Path(data).name, known)
    folder = out / ("screen-quick" if quick else "screen")
    say(f"a demo screen in {folder}")
    with count_bar("drawing wells") as progress:
        if quick:
            generate(folder, plates=2, sites=1, size=128, progress=progress)
        else:
            generate(folder, progress=progress)
    return _Screen(read_manifest(folder), "demo screen", known or read_pairs_folder(folder / "relationships"))


def _run_systems(systems: Sequence[System], plan: Plan, size: str, say: Say) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for i, system in enumerate(systems, 1):
        say(f"{i}/{len(systems)} {system.backbone}")
        if size == "paper" and system.trains and not has_gpu():
            found = [Outcome(system, "unavailable", "needs a GPU")]
        else:
            found = run_system(system, plan)
        outcomes += found
        say(_line(found[-1]))
    return outcomes


def _line(o: Outcome) -> str:
    if o.status != "done":
        return f"  not run: {o.reason}"
    recall = ", ".join(f"{s} {r['value']:.3f} ± {r['se']:.3f}" for s, r in o.recall.items())
    return f"  recall {recall or '(no known pairs)'}  {o.facts['seconds']:.0f} s"


def _tables(
    outcomes: Sequence[Outcome],
    screen: _Screen,
    gene_sets: Mapping[str, Sequence[str]],
    genes: GeneTables | None,
    retrieval: Callable[[Sequence[Outcome]], paper_tables.PaperTable],
) -> list[paper_tables.PaperTable]:
    final = [o for o in outcomes if o.step is None]
    sources = [str(source) for source in screen.pairs or {}]
    return [
        paper_tables.alignment_table(outcomes, screen.pairs),
        paper_tables.recall_table(outcomes, sources, screen.name, screen.pairs, genes),
        read_out_table(final, sources),
        retrieval(final),
        paper_tables.gene_set_table(final, screen.pairs, gene_sets),
    ]
