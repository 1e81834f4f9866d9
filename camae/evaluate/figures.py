"""Figures of evaluations: scores by block, by channel left out, and imputed channels. Tables in, Matplotlib out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from camae.evaluate.imputation import Imputed
from camae.reporting.style import CYCLE, INK, house_style, legend_below, new_figure, strip_axes

_LABELS = {
    "separability": "separability of perturbations",
    "consistency": "consistency of replicates",
    "recall": "recall of known pairs",
}


def layer_figure(table: pd.DataFrame) -> Figure:
    """Separability and consistency by block: lines for the half that chose and the half held out, bars of one standard
    error, and the chosen block. table: as `camae.evaluate.layers` returns it.
    """
    chosen = int(table.loc[table["chosen"], "block"].iloc[0])
    with house_style():
        figure = new_figure(7.2, 3.1)
        for axes, name in zip(figure.subplots(1, 2), ("separability", "consistency"), strict=True):
            strip_axes(axes, grid="y")
            for k, (prefix, label) in enumerate((("", "half that chose"), ("held_out_", "half held out"))):
                axes.errorbar(
                    table["block"] + (0.06 if k else -0.06),  # so that no bar hides the other
                    table[prefix + name],
                    yerr=table[f"{prefix}{name}_se"],
                    color=CYCLE[k],
                    marker="o",
                    markersize=3.5,
                    linewidth=1.3,
                    elinewidth=0.8,
                    label=label,
                )
            axes.axvline(
                chosen, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), label=f"chosen: block {chosen}"
            )
            chance = table["chance"].iloc[0] if name == "separability" else 0.0
            axes.axhline(chance, color=INK, linewidth=0.9, linestyle=":", label="chance")
            axes.set_xlabel("encoder block")
            axes.set_ylabel(_LABELS[name])
            axes.xaxis.get_major_locator().set_params(integer=True)
        legend_below(figure, figure.axes[0])
    return figure


def channel_figure(table: pd.DataFrame) -> Figure:
    """Scores by channels left out, one panel each: a point and its standard error per set, a line at all channels.

    table: as `camae.evaluate.channels` returns it.
    """
    names = [name for name in _LABELS if name in table]
    with house_style():
        figure = new_figure(3.0 * len(names) + 1.2, 1.1 + 0.3 * len(table))
        panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
        place = np.arange(len(table))
        for axes, name in zip(panels, names, strict=True):
            strip_axes(axes, grid="x")
            axes.errorbar(
                table[name],
                place,
                xerr=table[f"{name}_se"],
                fmt="o",
                color=CYCLE[0],
                markersize=4,
                elinewidth=1,
            )
            axes.axvline(table[name].iloc[0], color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
            axes.set_xlabel(_LABELS[name])
        labels = [_set_label(*names) for names in zip(table["left_out"], table["imputed"], strict=True)]
        panels[0].set_yticks(place, labels)
        panels[0].invert_yaxis()
    return figure


def imputed_figure(imputed: Sequence[Imputed]) -> Figure:
    """Imputed channels of one field: original, imputed and absolute error, a row for each channel.

    Original and imputed share a gray scale, in standard deviations of the plane; errors share a scale from 0.
    """
    top = max(float(np.quantile(i.error_HW, 0.995)) for i in imputed)
    with house_style():
        figure = new_figure(6.2, 0.4 + 1.9 * len(imputed))
        grid = figure.subplots(len(imputed), 3, squeeze=False)
        for axes, found in zip(grid, imputed, strict=True):
            low, high = np.quantile(found.original_HW, [0.005, 0.995])
            axes[0].imshow(found.original_HW, cmap="gray", vmin=low, vmax=high)
            axes[1].imshow(found.imputed_HW, cmap="gray", vmin=low, vmax=high)
            shown = axes[2].imshow(found.error_HW, cmap="magma", vmin=0, vmax=top)
            axes[0].set_ylabel(found.channel)
            axes[2].set_title(f"mean squared error {found.mse:.2f}", fontsize=8)
            for panel in axes:
                panel.set_xticks([])
                panel.set_yticks([])
        grid[0][0].set_title("original")
        grid[0][1].set_title("from the other channels")
        figure.colorbar(shown, ax=grid[:, 2].tolist(), label="absolute error, standard deviations")
    return figure


def _set_label(left_out: str, imputed: bool) -> str:
    if not left_out:
        return "all channels"
    return f"{left_out} imputed" if imputed else f"without {left_out}"
