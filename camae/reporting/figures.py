"""Figures of a run: loss curves, recall, reconstructions, relationships. Plain arrays in, Matplotlib figures out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.spines import Spine
from matplotlib.ticker import PercentFormatter

from camae.errors import CamaeError
from camae.reporting.ordering import cluster_order
from camae.reporting.run_folder import Score
from camae.reporting.style import (
    CYCLE,
    INK,
    color,
    dashes,
    house_style,
    legend_below,
    legend_label,
    log_axis,
    new_figure,
    plain_axes,
    save_png,
)

__all__ = [
    "loss_curves",
    "recall_against_percentile",
    "recall_bars",
    "reconstruction_grid",
    "relationship_map",
    "relationship_wheel",
    "save_png",
]
Log: TypeAlias = pd.DataFrame | Sequence[Mapping[str, object]]
HIDDEN = (0.50, 0.55, 0.62)  # RGB of masked patches


def loss_curves(logs: Mapping[str, Log], *, x: str = "step", y: str = "loss") -> Figure:
    """Training loss on logarithmic axes (paper, Figure 3): one line per run.

    logs: by run name, rows with the columns `x` and `y` (a `log.jsonl`). Rows with `val_<y>` add a dashed line.
    A faint line shows every row, a strong one the mean over the last tenth of steps seen so far.
    """
    shades = [CYCLE[i % len(CYCLE)] for i in range(len(logs))]
    with house_style():
        figure = new_figure(6.4, 3.6)
        axes = plain_axes(figure, grid="both")
        for (name, rows), shade, dash in zip(logs.items(), shades, dashes(shades), strict=True):
            table = pd.DataFrame(rows)
            if not {x, y} <= set(table.columns):
                raise CamaeError(
                    f"the log of {name} has no columns {x} and {y}: it has {list(table.columns)}"
                )
            step, value = table[x].to_numpy(float), table[y].to_numpy(float)
            axes.plot(step, value, color=shade, alpha=0.25, linewidth=0.8)
            axes.plot(
                step,
                _smooth(step, value),
                color=shade,
                linestyle=dash,
                linewidth=1.6,
                marker="o" if len(step) == 1 else "",  # a line of one point is not seen
                label=legend_label(name),
            )
            if f"val_{y}" in table:
                held = table.dropna(subset=[f"val_{y}"])
                axes.plot(held[x], held[f"val_{y}"], "--o", color=shade, markersize=3, linewidth=1)
        axes.set(xlabel=x, ylabel=f"reconstruction {y}")
        log_axis(axes, "x")
        log_axis(axes, "y")
        legend_below(figure, axes)
    return figure


def _smooth(step: npt.NDArray[np.float64], value: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean over the rows of the last tenth of each step count: a constant width on the logarithmic axis."""
    total = np.concatenate([[0.0], np.cumsum(value)])
    start = np.searchsorted(step, 0.9 * step)
    end = np.arange(1, len(step) + 1)
    return (total[end] - total[start]) / (end - start)


def standard_error(score: Score) -> float | None:
    """The standard error of a score; None where it is missing or not finite."""
    error = score.get("se")
    return float(error) if error is not None and np.isfinite(error) else None


def recall_bars(recall: Mapping[str, Score], *, chance: float = 0.10) -> Figure:
    """Horizontal bars of recall by system with 95 % intervals (or standard errors), and the chance level."""
    with house_style():
        figure = new_figure(6.4, 0.7 + 0.42 * len(recall))
        draw_recall_bars(plain_axes(figure, grid="x"), recall, chance=chance)
    return figure


def draw_recall_bars(
    axes: Axes, recall: Mapping[str, Score], *, chance: float = 0.10, fontsize: float = 9
) -> None:
    """Draw `recall_bars` on axes that are there. fontsize: points."""
    for i, (name, score) in enumerate(recall.items()):
        value, error = score["value"], standard_error(score) or 0.0
        low, high = score.get("low", value - error), score.get("high", value + error)
        axes.barh(i, value, color=color(name, i), height=0.62)
        axes.errorbar(value, i, xerr=[[value - low], [high - value]], color=INK, linewidth=1, capsize=3)
        axes.text(high + 0.012, i, f"{value:.2f}", va="center", fontsize=fontsize)
    axes.axvline(chance, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(recall)), list(recall), fontsize=fontsize)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    axes.set_xlabel(f"recall of known relationships (dashed: chance, {chance:.0%})", fontsize=fontsize)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.tick_params(axis="x", labelsize=fontsize)
    axes.tick_params(axis="y", length=0)


def recall_against_percentile(curves: pd.DataFrame, *, mark: float = 0.10) -> Figure:
    """Recall against the share of most extreme cosines kept (paper, Figure 5, right).

    curves: columns `system`, `percentile` and `recall`, all shares between 0 and 1. The dotted diagonal is chance; the
    vertical line marks the share at which recall is reported (5 % in either tail).
    """
    with house_style():
        figure = new_figure(5.0, 4.0)
        axes = plain_axes(figure, grid="both")
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.9, linestyle=":")
        systems = [str(name) for name in curves["system"].unique()]
        shades = [color(name, i) for i, name in enumerate(systems)]
        for name, shade, dash in zip(systems, shades, dashes(shades), strict=True):
            rows = curves[curves["system"].astype(str) == name].sort_values("percentile")
            axes.plot(
                rows["percentile"],
                rows["recall"],
                color=shade,
                linestyle=dash,
                linewidth=1.7,
                label=legend_label(name),
            )
        axes.axvline(mark, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set(
            xlim=(0, 1), ylim=(0, 1.01), xlabel="share of most extreme cosines (both tails)", ylabel="recall"
        )
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        legend_below(figure, axes)
    return figure


def reconstruction_grid(
    masked: npt.NDArray[np.floating],
    reconstruction: npt.NDArray[np.floating],
    original: npt.NDArray[np.floating],
    labels: Sequence[str],
    channels: Sequence[str],
) -> Figure:
    """Triplets of masked input, reconstruction and original for every channel (paper, Figure 2).

    masked, reconstruction, original: (R, C, H, W) in any one unit; NaN marks hidden pixels. labels: R row names, for
    instance negative control and perturbation in turn. channels: C names. Gray levels of a triplet share one
    scale, the 1st to 99.7th percentile of its original.
    """
    shape = np.shape(original)
    if len(shape) != 4 or (len(labels), len(channels)) != shape[:2]:
        raise CamaeError(
            f"reconstructions of shape {shape} need as many labels and channels, "
            f"got {len(labels)} and {len(channels)}"
        )
    panels_R3CHW4 = gray_panels(masked, reconstruction, original)
    R, C, H, W = shape
    thin, wide = max(1, H // 64), max(4, H // 16)
    height, width = R * (H + wide) - wide, C * (3 * W + 2 * thin + wide) - wide
    mosaic = np.ones((height, width, 4), np.float32)
    mosaic[..., 3] = 0
    for r in range(R):
        for c in range(C):
            for t in range(3):
                y, x = r * (H + wide), c * (3 * W + 2 * thin + wide) + t * (W + thin)
                mosaic[y : y + H, x : x + W] = panels_R3CHW4[r, t, c]
    return _captioned(mosaic, labels, channels, H, wide)


def gray_panels(
    masked: npt.NDArray[np.floating],
    reconstruction: npt.NDArray[np.floating],
    original: npt.NDArray[np.floating],
) -> npt.NDArray[np.float32]:
    """RGBA panels (R, 3, C, H, W, 4) of three arrays (R, C, H, W), on the scale of `reconstruction_grid`.

    NaN becomes the color `HIDDEN`.
    """
    values_R3CHW = np.stack([masked, reconstruction, original], axis=1).astype(np.float32)
    low_RC, high_RC = np.percentile(values_R3CHW[:, 2], (1, 99.7), axis=(2, 3))
    scale = np.maximum(high_RC - low_RC, 1e-6)[:, None, :, None, None]
    gray_R3CHW = np.clip((values_R3CHW - low_RC[:, None, :, None, None]) / scale, 0, 1)
    panels = np.ones((*gray_R3CHW.shape, 4), np.float32)
    panels[..., :3] = gray_R3CHW[..., None]
    panels[np.isnan(gray_R3CHW), :3] = HIDDEN
    return panels


def _captioned(
    mosaic: npt.NDArray[np.float32], labels: Sequence[str], channels: Sequence[str], row: int, gap: int
) -> Figure:
    height, width = mosaic.shape[:2]
    with house_style():
        size = 13.0
        figure = new_figure(size, size * height / width + 0.55)
        axes = figure.subplots()
        axes.imshow(mosaic, interpolation="nearest", aspect="equal")
        axes.spines[:].set_visible(False)
        axes.set_yticks(
            [r * (row + gap) + row / 2 for r in range(len(labels))], labels, rotation=90, va="center"
        )
        block = (width + gap) / len(channels)
        axes.set_xticks([c * block + (block - gap) / 2 for c in range(len(channels))], channels)
        axes.tick_params(length=0, labeltop=True, labelbottom=False, labelsize=8.5)
        axes.set_xlabel("each channel: masked input · reconstruction · original", fontsize=8.5)
    return figure


def relationship_map(
    vectors: npt.NDArray[np.floating],
    names: Sequence[str],
    known: Collection[tuple[str, str]] = (),
) -> Figure:
    """Cosines between perturbations as a heat map, ordered so that similar ones lie together.

    vectors: (n, d), origin at the negative controls. names: n labels. known: pairs marked by open squares below
    the diagonal. Order by average-linkage clustering of the cosines. Raises CamaeError beyond 1,000 rows.
    """
    unit = np.asarray(vectors, float)
    if len(unit) > 1000:
        raise CamaeError(f"a heat map of {len(unit)} perturbations cannot be read; choose at most 1,000 rows")
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    cosine = unit @ unit.T
    order = cluster_order(cosine)
    position = {str(names[i]): k for k, i in enumerate(order)}
    with house_style():
        figure = new_figure(9.4, 8.2)
        axes = figure.subplots()
        image = axes.imshow(
            cosine[np.ix_(order, order)], cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest"
        )
        found = [(position[a], position[b]) for a, b in known if a in position and b in position]
        if found:
            low, high = np.min(found, axis=1), np.max(found, axis=1)
            size = max(2.0, 430 / len(unit)) * 0.55
            axes.scatter(
                low, high, s=size**2, marker="s", facecolor="none", edgecolor="#111111", linewidth=0.8
            )
        if len(unit) <= 64:
            shown = [str(names[i]) for i in order]
            axes.set_xticks(range(len(unit)), shown, rotation=90, fontsize=7)
            axes.set_yticks(range(len(unit)), shown, fontsize=7)
        else:
            axes.set_xticks([])
            axes.set_yticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=axes, shrink=0.6, pad=0.02, label="cosine")
        cast(Spine, bar.outline).set_visible(False)
    return figure


def relationship_wheel(strongest: pd.DataFrame, order: Sequence[str] | None = None) -> Figure:
    """The strongest relationships as arcs between perturbations on a circle.

    strongest: columns a, b, cosine and, optionally, `known` (bool). order: names around the circle; by default as
    they appear. Solid: known; faint: not known. Red: similar, blue: opposite.
    """
    named = pd.unique(strongest[["a", "b"]].to_numpy().ravel())
    names = [n for n in (order if order is not None else named) if n in set(named)]
    angle = {n: 2 * np.pi * i / len(names) for i, n in enumerate(names)}
    known = strongest["known"] if "known" in strongest else pd.Series(True, index=strongest.index)
    t = np.linspace(0, 1, 40)[:, None]
    with house_style():
        figure = new_figure(6.2, 6.2)
        axes = figure.subplots()
        for (_, row), is_known in zip(strongest[::-1].iterrows(), known[::-1], strict=True):
            ends = np.array([[np.cos(angle[row[k]]), np.sin(angle[row[k]])] for k in ("a", "b")])
            arc = (1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * 0.25 * ends.sum(0) + t**2 * ends[1]
            hue = "#c0392b" if row["cosine"] > 0 else "#2c6fbb"
            axes.plot(
                *arc.T, color=hue, linewidth=0.6 + 1.6 * abs(row["cosine"]), alpha=0.85 if is_known else 0.22
            )
        for name, turn in angle.items():
            _wheel_label(axes, name, turn, 6.5 if len(names) <= 70 else 4.5)
        axes.set(xlim=(-1.22, 1.22), ylim=(-1.22, 1.22), aspect="equal")
        axes.axis("off")
    return figure


def _wheel_label(axes: Axes, name: str, angle: float, fontsize: float) -> None:
    """A name outside the unit circle at `angle` (radians), upright on the left half as well."""
    x, y, degrees = np.cos(angle), np.sin(angle), np.degrees(angle)
    left = 90 < degrees < 270
    axes.plot(x, y, "o", color=INK, markersize=2.5)
    axes.text(
        1.04 * x,
        1.04 * y,
        name,
        rotation=degrees + 180 if left else degrees,
        rotation_mode="anchor",
        ha="right" if left else "left",
        va="center",
        fontsize=fontsize,
    )
