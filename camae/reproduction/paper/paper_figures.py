"""Figures 2, 3, 5 and 6 of the paper: reconstructions, losses, scaling and recall curves, feature regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from camae import maps
from camae.embedding_table import features_of
from camae.files import read_json_lines
from camae.maps.pairs import Pairs
from camae.maps.probes import CATEGORIES
from camae.reporting.figures import loss_curves, recall_against_percentile, save_png
from camae.reporting.style import (
    CYCLE,
    INK,
    dashes,
    house_style,
    legend_below,
    log_axis,
    new_figure,
    plain_axes,
)
from camae.reproduction.benchmark.feature_table import category_scores
from camae.reproduction.paper.evaluate_system import Outcome, Plan
from camae.reproduction.paper.paper_systems import System

_MARKERS = "os^Dv<>pPXh*"
_HATCHES = ("", "////", "....", "xxxx")


def write_figures(
    outcomes: Sequence[Outcome], plan: Plan, cellprofiler: pd.DataFrame | None
) -> dict[str, str]:
    """Write the figures into the results folder. Returns each figure's file name, or why there is none.

    cellprofiler: features for Figure 6, of `read_cellprofiler`.
    """
    final = [o for o in outcomes if o.status == "done" and o.step is None]
    trained = [o for o in final if o.system.trains]
    return {
        "figure2": _reconstructions(trained, plan.out),
        "figure3": _losses(trained, plan.out),
        **_recall_figures(outcomes, plan),
        "figure6": _features(final, plan.out, cellprofiler),
    }


def _reconstructions(trained: Sequence[Outcome], out: Path) -> str:
    """The picture of the last masked autoencoder that has one."""
    pictures = [out / o.facts["run"] / "reconstructions.png" for o in trained]
    pictures = [picture for picture in pictures if picture.is_file()]
    if not pictures:
        return "no masked autoencoder was run"
    return str(pictures[-1].relative_to(out))


def _losses(trained: Sequence[Outcome], out: Path) -> str:
    """Squared error with and without the Fourier loss, same seed: the family where both were run."""
    for family in ("ca_mae", "mae_vit"):
        logs = {
            o.system.backbone: read_json_lines(out / o.facts["run"] / "log.jsonl")
            for o in trained
            if o.system.family == family
        }
        if len(logs) > 1:
            save_png(loss_curves(logs, y="mse"), out / "figure3.png")
            return "figure3.png"
    return "needs a system with and without the Fourier loss"


def _recall_figures(outcomes: Sequence[Outcome], plan: Plan) -> dict[str, str]:
    """Both parts of Figure 5 for every source of known pairs; the first source's are named."""
    final = [o for o in outcomes if o.mapped is not None and o.step is None]
    if plan.pairs is None or not final:
        reason = "no known pairs were given, or nothing was run"
        return {"figure5_left": reason, "figure5_right": reason}
    for source, pairs in plan.pairs.items():
        save_png(scaling_plot(outcomes, source), plan.out / f"figure5_left_{source}.png")
        curves = recall_against_percentile(_recall_curves(final, pairs))
        save_png(curves, plan.out / f"figure5_right_{source}.png")
    first = next(iter(plan.pairs))
    return {"figure5_left": f"figure5_left_{first}.png", "figure5_right": f"figure5_right_{first}.png"}


def _recall_curves(outcomes: Sequence[Outcome], pairs: Pairs) -> pd.DataFrame:
    """Recall against percentile of every outcome that has a map; columns of `maps.recall_curve` and system."""
    names = figure_names([o.system for o in outcomes])
    return pd.concat(
        [
            maps.recall_curve(o.mapped.vectors, o.mapped.names, pairs).assign(system=names[o.system.name])
            for o in outcomes
            if o.mapped is not None
        ]
    )


def _features(final: Sequence[Outcome], out: Path, cellprofiler: pd.DataFrame | None) -> str:
    if cellprofiler is None:
        return "no CellProfiler features were given (cellprofiler=, with Metadata_Plate and Metadata_Well)"
    scores = feature_scores(final, cellprofiler)
    if not scores:
        return "no well of the screen is in the table of CellProfiler features, or it has one plate only"
    save_png(feature_bars(scores), out / "figure6.png")
    return "figure6.png"


def scaling_plot(outcomes: Sequence[Outcome], source: str) -> Figure:
    """Recall of `source` against training FLOPs: a color per family, a marker per system; whiskers: standard errors.

    Saved steps of a system are joined by a line. Systems without training are horizontal lines. Names stand below, so
    that systems of nearly the same recall or cost stay readable.
    """
    with house_style():
        figure = new_figure(5.4, 4.0)
        axes = plain_axes(figure, grid="both")
        shown = [o for o in outcomes if source in o.recall]
        names = figure_names([o.system for o in shown])
        families = list(dict.fromkeys(o.system.family for o in shown if o.system.trains))
        for i, family in enumerate(families):
            of_family = dict.fromkeys(o.system.name for o in shown if o.system.family == family)
            for marker, system in zip(cycle(_MARKERS), of_family, strict=False):
                points = [o for o in shown if o.system.name == system]
                _points(axes, points, source, CYCLE[i % len(CYCLE)], marker, names[system])
        flat = [o for o in shown if not o.system.trains]
        for o, dash in zip(flat, dashes([INK] * (len(flat) + 1))[1:], strict=True):
            axes.axhline(
                o.recall[source]["value"],
                color=INK,
                linewidth=0.9,
                linestyle=dash,
                label=names[o.system.name],
            )
        axes.set(xlabel="training FLOPs", ylabel=f"recall, {source}")
        log_axis(axes, "x")
        legend_below(figure, axes)
    return figure


def _points(axes: Axes, points: Sequence[Outcome], source: str, color: str, marker: str, label: str) -> None:
    """The outcomes of one system, from the fewest training FLOPs to the most."""
    points = sorted(points, key=lambda o: o.facts["training_flops"])
    axes.errorbar(
        [o.facts["training_flops"] for o in points],
        [o.recall[source]["value"] for o in points],
        [o.recall[source]["se"] for o in points],
        marker=marker,
        color=color,
        markersize=6,
        markeredgecolor="white",  # tells markers apart that lie on one another
        linewidth=1,
        label=label,
    )


def figure_names(systems: Sequence[System]) -> dict[str, str]:
    """The name of each system in figures, by `System.name`: its backbone, with the group where two share that."""
    backbones = {s.name: s.backbone for s in systems}
    shared = list(backbones.values())
    return {
        s.name: f"{s.backbone}, {s.group}" if shared.count(s.backbone) > 1 else s.backbone for s in systems
    }


def feature_scores(outcomes: Sequence[Outcome], features: pd.DataFrame) -> dict[str, pd.Series]:
    """Median R^2 of each CellProfiler category by system (Figure 6), fitted on all plates but the last, tested on it.

    features: `Metadata_Plate`, `Metadata_Well` and CellProfiler columns.
    """
    names = figure_names([o.system for o in outcomes])
    scores = {}
    for o in outcomes:
        if o.wells is not None:
            found = category_scores(o.wells, features_of(o.wells), features)
            if found is not None:
                scores[names[o.system.name]] = found
    return scores


def feature_bars(scores: Mapping[str, pd.Series]) -> Figure:
    """Bars of `feature_scores`, one group per category."""
    with house_style():
        figure = new_figure(6.4, 3.4)
        axes = plain_axes(figure, grid="y")
        width = 0.8 / max(1, len(scores))
        for i, (name, values) in enumerate(scores.items()):
            hatch = _HATCHES[i // len(CYCLE) % len(_HATCHES)]  # colors come again, with another pattern
            at = np.arange(len(CATEGORIES)) + (i - (len(scores) - 1) / 2) * width
            axes.bar(
                at,
                values.to_numpy(float),
                width,
                color=CYCLE[i % len(CYCLE)],
                hatch=hatch,
                edgecolor="white",
                linewidth=0,
                label=name,
            )
        axes.set_xticks(range(len(CATEGORIES)), list(CATEGORIES))
        axes.set(ylabel="median R²", ylim=(min(0.0, *(s.min() for s in scores.values())), 1))
        legend_below(figure, axes)
    return figure
