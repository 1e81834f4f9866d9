"""Figures 5 (left) and 6 of the paper; 2, 3 and 5 (right) are those of `camae.reporting.figures`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from camae.maps.probes import CATEGORIES, feature_regression
from camae.reporting.style import CYCLE, INK, house_style, new_figure, plain_axes
from camae.reproduction.paper.evaluate_system import Outcome


def scaling_plot(outcomes: Sequence[Outcome], source: str) -> Figure:
    """Recall of `source` against training FLOPs, one color per family; whiskers are standard errors.

    Systems without training stand as dotted lines.
    """
    with house_style():
        figure = new_figure(5.4, 4.0)
        axes = plain_axes(figure, grid="both")
        families = list(dict.fromkeys(o.system.family for o in outcomes if o.system.trains and o.recall))
        for i, family in enumerate(families):
            points = [o for o in outcomes if o.system.family == family and source in o.recall]
            flops = [o.facts["training_flops"] for o in points]
            value, se = ([o.recall[source][k] for o in points] for k in ("value", "se"))
            hue = CYCLE[i % len(CYCLE)]
            axes.errorbar(flops, value, se, fmt="o", color=hue, markersize=4, linewidth=1, label=family)
            for o, x, y in zip(points, flops, value, strict=True):
                axes.annotate(o.label, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=6)
        for o in outcomes:
            if not o.system.trains and source in o.recall:
                height = o.recall[source]["value"]
                axes.axhline(height, color=INK, linewidth=0.7, linestyle=":")
                axes.annotate(o.label, (0.01, height), xycoords=("axes fraction", "data"), fontsize=6)
        axes.set(xscale="log", xlabel="training FLOPs", ylabel=f"recall, {source}")
        if families:
            axes.legend(fontsize=7, loc="lower right")
    return figure


def feature_scores(outcomes: Sequence[Outcome], features: pd.DataFrame) -> dict[str, pd.Series]:
    """Median R^2 of each CellProfiler category (Figure 6) by system: fitted on all plates but the last, judged on it.

    features: `Metadata_Plate`, `Metadata_Well` and CellProfiler columns.
    """
    names = [c for c in features.columns if not c.startswith("Metadata_")]
    scores = {}
    for o in outcomes:
        if o.wells is None:
            continue
        joined = o.wells.merge(features, on=["Metadata_Plate", "Metadata_Well"], suffixes=("", "_cp"))
        plates = joined["Metadata_Plate"].to_numpy(str)
        if len(np.unique(plates)) < 2:
            continue
        last = plates == np.unique(plates)[-1]
        x = joined[[c for c in o.wells.columns if not c.startswith("Metadata_")]].to_numpy(float)
        y = joined[names].to_numpy(float)
        r2 = feature_regression(x[~last], y[~last], x[last], y[last], names, ridge=1e-3)
        scores[o.label] = r2.groupby("category")["r2"].median().reindex(CATEGORIES)
    return scores


def feature_bars(scores: Mapping[str, pd.Series]) -> Figure:
    """Bars of `feature_scores`, one group per category."""
    with house_style():
        figure = new_figure(6.4, 3.4)
        axes = plain_axes(figure, grid="y")
        width = 0.8 / max(1, len(scores))
        for i, (name, values) in enumerate(scores.items()):
            at = np.arange(len(CATEGORIES)) + (i - (len(scores) - 1) / 2) * width
            axes.bar(at, values.to_numpy(float), width, color=CYCLE[i % len(CYCLE)], label=name)
        axes.set_xticks(range(len(CATEGORIES)), list(CATEGORIES))
        axes.set(ylabel="median R²", ylim=(min(0.0, *(s.min() for s in scores.values())), 1))
        axes.legend(fontsize=7)
    return figure
