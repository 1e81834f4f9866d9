"""`camae paper`: run a choice of the paper's systems on one screen and write its tables and figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from camae import maps
from camae.dataloader.datasets import read_manifest
from camae.dataloader.manifest import Manifest
from camae.errors import CamaeError
from camae.files import read_json_lines, write_json, write_text
from camae.maps.pair_files import read_pairs_folder
from camae.reporting import html
from camae.reporting.figures import loss_curves, recall_against_percentile, save_png
from camae.reporting.style import data_uri
from camae.reproduction.paper import paper_tables, published
from camae.reproduction.paper.evaluate_system import Outcome, Plan, has_gpu, run_system
from camae.reproduction.paper.paper_figures import feature_bars, feature_scores, scaling_plot
from camae.reproduction.paper.paper_systems import SIZES, System, chosen
from camae.reproduction.paper.paper_tables import PaperTable
from camae.versions import versions

DEFAULT_OUT = "camae-paper"
# Steps and crops per step at the smallest size, sized for two cores: the whole run under 30 minutes, --quick under 5.
SMALLEST_RUN = {"steps": 160, "batch_size": 16, "checkpoint_every": 80, "val": "plate"}
QUICK_RUN = {"steps": 12, "batch_size": 8, "checkpoint_every": 6, "val": "plate"}
QUICK_SCREEN: dict[str, Any] = {"plates": 2, "sites": 1, "size": 128}


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
    tiles: str = "grid",
    value_range: tuple[float, float] | None = None,
    recipe: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train, embed and benchmark the paper's systems on one screen; returns what results.json holds.

    data: a screen as `camae.train` takes it; without it a demo screen is made in `out/screen`.
    systems: names or families of `camae.reproduction.paper.paper_systems`; all of the size without them.
    size: "smallest" (two cores) or "paper" (needs a GPU, and recipe={"steps": ...}).
    quick: few steps, and a smaller demo screen: shows that all parts work, not how good anything is.
    checkpoints: "last", or "all" for a row of every saved step with its validation loss.
    pairs: file or folder of known pairs. weights: folder of ImageNet weights named after timm's models.
    channel_map: {model's channel: image's channel} of models whose weights are given.
    gene_sets: folder of gene lists (Table 5). cellprofiler: table of features by plate and well (Figure 6).
    target: column of targets joined by "|" (siblings of Table 4). recipe: training settings of all systems.

    Writes results.json (one entry per family), paper.html, table2.csv .. table5.csv, figures, and everything that
    was trained and embedded. A second call continues. What cannot be filled says why; that is no error.
    """
    if checkpoints not in ("last", "all"):
        raise CamaeError(f"checkpoints {checkpoints!r} is not 'last' or 'all'")
    out, say, began = Path(out), (console or Console()).print, time.perf_counter()
    todo = chosen(size, systems)
    settings = (QUICK_RUN if quick else SMALLEST_RUN) if size == "smallest" else {}
    settings = {"steps": 10_000} | settings | dict(recipe or {})
    manifest, dataset, known = _screen(data, out, quick, pairs, say)
    if settings.get("val") == "plate" and manifest.table["Metadata_Plate"].nunique() < 2:
        settings.pop("val")
    plan = Plan(
        manifest,
        out,
        known,
        settings,
        tiles=tiles,
        weights=None if weights is None else Path(weights),
        channel_map=dict(channel_map or {}),
        bootstrap=100 if quick else 1000,
        all_checkpoints=checkpoints == "all",
        value_range=value_range,
    )
    outcomes: list[Outcome] = []
    for i, system in enumerate(todo, 1):
        say(f"[bold]{i}/{len(todo)}[/] {system.backbone}")
        needs_gpu = size == "paper" and system.trains and not has_gpu()
        found = [Outcome(system, "unavailable", "needs a GPU")] if needs_gpu else run_system(system, plan)
        outcomes += found
        _say(say, found[-1])
    made = _tables(outcomes, plan, dataset, target, gene_sets, quick)
    figures = _figures(outcomes, plan, cellprofiler)
    results = _results(outcomes, plan, dataset, size, quick, made, figures, time.perf_counter() - began)
    _write(out, results, made, figures)
    say(f"{time.perf_counter() - began:.0f} s: {out / 'results.json'}, {out / 'paper.html'}")
    return results


def _screen(
    data: str | Path | Manifest | None,
    out: Path,
    quick: bool,
    pairs: str | Path | None,
    say: Callable[..., None],
) -> tuple[Manifest, str, Any]:
    """(manifest, its name, known pairs by source or None)."""
    known = None if pairs is None else read_pairs_folder(pairs)
    if data is not None:
        name = "this screen" if isinstance(data, Manifest) else Path(data).name
        return read_manifest(data), name, known
    from camae.reproduction.demo.generate_screen import generate

    folder = out / ("screen-quick" if quick else "screen")
    say(f"a demo screen in {folder}")
    generate(folder, **(QUICK_SCREEN if quick else {}))
    return read_manifest(folder), "demo screen", known or read_pairs_folder(folder / "relationships")


def _say(say: Callable[..., None], o: Outcome) -> None:
    if o.status != "done":
        say(f"  not run: {o.reason}")
        return
    recall = ", ".join(f"{s} {r['value']:.3f} ± {r['se']:.3f}" for s, r in o.recall.items())
    say(f"  recall {recall or '(no known pairs)'}  {o.facts['seconds']:.0f} s")


def _tables(
    outcomes: Sequence[Outcome],
    plan: Plan,
    dataset: str,
    target: str | None,
    gene_sets: str | Path | None,
    quick: bool,
) -> list[PaperTable]:
    final = [o for o in outcomes if o.step is None]
    sources = [str(s) for s in plan.pairs] if plan.pairs is not None else []
    return [
        paper_tables.table2(outcomes, plan.pairs, plan.bootstrap),
        paper_tables.table3(outcomes, sources, dataset),
        paper_tables.table4(final, target, 500 if quick else 10_000),
        paper_tables.table5(final, plan.pairs, tables.read_gene_sets(gene_sets)),
    ]


def _figures(outcomes: Sequence[Outcome], plan: Plan, cellprofiler: str | Path | None) -> dict[str, str]:
    """Files of the figures, or why there is none."""
    found: dict[str, str] = {}
    runs = [
        (o.system, plan.out / o.facts["run"])
        for o in outcomes
        if o.status == "done" and o.system.trains and o.step is None
    ]
    found["figure2"] = _reconstructions(runs, plan.out)
    found["figure3"] = _losses(runs, plan.out)
    final = [o for o in outcomes if o.map is not None and o.step is None]
    if plan.pairs is None or not final:
        found["figure5_left"] = found["figure5_right"] = "no known pairs were given, or nothing was run"
    else:
        for source, listed in plan.pairs.items():
            done = [o for o in outcomes if o.recall]
            save_png(scaling_plot(done, str(source)), plan.out / f"figure5_left_{source}.png")
            curves = [
                maps.recall_curve(o.map.vectors, o.map.names, listed).assign(system=o.label)
                for o in final
                if o.map is not None
            ]
            figure = recall_against_percentile(pd.concat(curves))
            save_png(figure, plan.out / f"figure5_right_{source}.png")
        found["figure5_left"] = f"figure5_left_{next(iter(plan.pairs))}.png"
        found["figure5_right"] = f"figure5_right_{next(iter(plan.pairs))}.png"
    found["figure6"] = _features(final, plan.out, cellprofiler)
    return found


def _reconstructions(runs: Sequence[tuple[System, Path]], out: Path) -> str:
    """The picture of the last masked autoencoder that has one."""
    pictures = [run / "reconstructions.png" for _, run in runs]
    pictures = [p for p in pictures if p.is_file()]
    if not pictures:
        return "no masked autoencoder was run"
    return str(pictures[-1].relative_to(out))


def _losses(runs: Sequence[tuple[System, Path]], out: Path) -> str:
    """Squared error with and without the Fourier loss, same seed: the family where both were run."""
    for family in ("ca_mae", "mae_vit"):
        logs = {s.backbone: read_json_lines(run / "log.jsonl") for s, run in runs if s.family == family}
        if len(logs) > 1:
            save_png(loss_curves(logs, y="mse"), out / "figure3.png")
            return "figure3.png"
    return "needs a system with and without the Fourier loss"


def _features(final: Sequence[Outcome], out: Path, cellprofiler: str | Path | None) -> str:
    if cellprofiler is None:
        return "no CellProfiler features were given (cellprofiler=, with Metadata_Plate and Metadata_Well)"
    meta, x = maps.read_profiles(cellprofiler)
    names = [c for c in pd.read_parquet(cellprofiler).columns if not c.startswith("Metadata_")]
    scores = feature_scores(final, pd.concat([meta, pd.DataFrame(x, columns=names)], axis=1))
    if not scores:
        return "no well of the screen is in the table of CellProfiler features, or it has one plate only"
    save_png(feature_bars(scores), out / "figure6.png")
    return "figure6.png"


def _results(
    outcomes: Sequence[Outcome],
    plan: Plan,
    dataset: str,
    size: str,
    quick: bool,
    made: Sequence[PaperTable],
    figures: Mapping[str, str],
    seconds: float,
) -> dict[str, Any]:
    """results.json: an entry for every family, its systems in it; tables; figures; the paper's numbers apart."""
    families = {}
    for family in dict.fromkeys(s.family for s in SIZES[size]):
        rows = [o.row() for o in outcomes if o.system.family == family]
        done = any(r["status"] == "done" for r in rows)
        reasons = list(dict.fromkeys(r["reason"] for r in rows if r["reason"]))
        families[family] = {
            "status": "done" if done else "unavailable",
            "reason": "" if done else "; ".join(reasons) or "not among the systems chosen",
            "systems": rows,
        }
    return {
        "screen": dataset,
        "sites": len(plan.manifest),
        "channels": list(plan.manifest.channels),
        "size": size,
        "quick": quick,
        "recipe": plan.recipe,
        "alignment": "TVN by plate, at most half as many components as controls",
        "families": families,
        "tables": {t.name: [dict(zip(t.header, row, strict=True)) for row in t.rows] for t in made},
        "figures": dict(figures),
        "published": {
            t.name: [dict(zip(t.published_header, r, strict=True)) for r in t.published_rows] for t in made
        }
        | {"figure6": {k: list(v) for k, v in published.FIGURE_6.items()}},
        "versions": versions(),
        "seconds": seconds,
    }


def _write(
    out: Path, results: dict[str, Any], made: Sequence[PaperTable], figures: Mapping[str, str]
) -> None:
    for table in made:
        write_text(out / f"{table.name}.csv", table.frame().to_csv(index=False))
    write_json(out / "results.json", results)
    sections = [html.Section(t.name, t.title.rpartition("(")[2].rstrip(")"), _section(t)) for t in made]
    captions = {
        "figure2": "Masked input, reconstruction, original (Figure 2)",
        "figure3": "Squared error with and without the Fourier loss (Figure 3)",
        "figure5_left": "Recall against training FLOPs (Figure 5, left)",
        "figure5_right": "Recall against the share of most extreme cosines (Figure 5, right)",
        "figure6": "Median R² of CellProfiler features by category (Figure 6)",
    }
    body = "".join(_picture(out, figures[name], caption) for name, caption in captions.items())
    sections.append(html.Section("figures", "Figures", body))
    what = "quick run, shows that the parts work" if results["quick"] else f"size: {results['size']}"
    lead = html.paragraph(
        "Systems of the paper as they come out on this screen, in the order they fall. The paper's own numbers stand "
        "below each table as published: other data, other sizes, not comparable."
    )
    page = html.page(
        "The paper's systems on one screen",
        f"{results['screen']} · {results['sites']:,} sites · {what}",
        lead,
        sections,
        "Written by camae paper.",
    )
    write_text(out / "paper.html", page)


def _section(table: PaperTable) -> str:
    theirs = html.table(table.published_header, table.published_rows)
    notes = "".join(html.paragraph(note) for note in table.notes)
    return (
        f"<h3>{html.escape(table.title)}</h3>{html.table(table.header, table.rows)}{notes}"
        f"<details><summary>Published</summary>{theirs}</details>"
    )


def _picture(out: Path, file: str, caption: str) -> str:
    if not file.endswith(".png"):
        return html.paragraph(f"{caption}: not shown, {file}.", "absent")
    return html.figure(html.image(data_uri((out / file).read_bytes()), caption), caption, "picture")
