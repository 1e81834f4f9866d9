"""Figures of bench/beyond_rows.py: a score without and with an option, the share of hidden planes, loss by compute."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from camae.reporting.style import CYCLE, INK, house_style, new_figure, plain_axes, save_png, strip_axes

Found = dict[str, Any]
Panels = Sequence[tuple[Found, str]]  # differences of beyond_rows.py, and their titles


def panels_of(
    channels: Found | None,
    layer: Found | None,
    cross: Found | None,
    teacher: Found | None,
    cells: list[Found],
) -> Iterator[tuple[str, Panels, tuple[str, str]]]:
    """(name, panels, labels of without and with) of each figure of paired points, from the rows there are."""
    if channels:
        names = ("per_channel_recall", "per_channel_recall_drop", "per_channel_consistency_drop")
        titles = ("recall, all channels", "drop of recall", "drop of consistency")
        share = channels["option"]["mask_channels"]
        yield (
            "channels",
            [(channels[k], t) for k, t in zip(names, titles, strict=True)],
            ("plain", f"{share:.0%}"),
        )
    if layer:
        panels = [(layer[k], k) for k in ("separability", "consistency")]
        yield "layers", panels, ("last", "chosen")
    if cross:
        names = ("recall", "held_out_separability", "held_out_consistency")
        titles = ("recall", "separability,\nheld out", "consistency,\nheld out")
        panels = [(cross[k], t) for k, t in zip(names, titles, strict=True)]
        yield "cross_well", panels, ("plain", "cross-well")
    if teacher:
        names = ("per_channel_recall", "per_channel_separability", "per_channel_consistency")
        panels = [(teacher[k], k.removeprefix("per_channel_")) for k in names]
        yield "teacher", panels, ("alone", "with a teacher")
    masked = [row for row in cells if "per_channel_drop" in row]
    if masked:
        row, start = masked[-1], "per_channel_"
        keys = [k for k in row if k.startswith(start) and k != "per_channel_drop"]
        panels = [(row[k], k.removeprefix(start).replace("all", "all channels")) for k in keys]
        yield "jurkat", panels, ("plain", f"{row['option']['mask_channels']:.0%}")


def draw_share(row: Found, path: Path) -> None:
    """Recall and consistency of all channels, and their drops, against the share of hidden planes; means dashed."""
    shown = {
        "per_channel_recall": "recall",
        "per_channel_recall_drop": "drop of recall",
        "per_channel_consistency": "consistency",
        "per_channel_consistency_drop": "drop of consistency",
    }
    shares = [(scores["option"] or {}).get("mask_channels", 0.0) for scores in row["scores"].values()]
    with house_style():
        figure = new_figure(8.4, 2.5)
        for axes, (name, title) in zip(figure.subplots(1, len(shown)), shown.items(), strict=True):
            strip_axes(axes, grid="y")
            values = np.array([scores[name] for scores in row["scores"].values()])
            for i, line in enumerate(values.T):
                axes.plot(shares, line, color=CYCLE[i], marker="o", markersize=3, linewidth=1)
            axes.plot(shares, values.mean(1), color=INK, linewidth=2, linestyle=(0, (4, 2)))
            axes.set_xticks(shares)
            axes.set_xlabel("share of planes hidden")
            axes.set_title(title, fontsize=8)
    save_png(figure, path)


def paired_panel(axes: Axes, found: Found, title: str, labels: tuple[str, str]) -> None:
    """Two columns of points, one line a screen, and the means."""
    strip_axes(axes, grid="y")
    for i, (a, b) in enumerate(zip(found["without"], found["with"], strict=True)):
        axes.plot((0, 1), (a, b), color=CYCLE[i % len(CYCLE)], marker="o", markersize=4, linewidth=1.1)
    axes.plot(
        (0, 1), (found["mean_without"], found["mean_with"]), color=INK, linewidth=2, linestyle=(0, (4, 2))
    )
    axes.set_xticks((0, 1), labels)
    axes.set_xlim(-0.3, 1.3)
    axes.set_title(f"{title}\ndifference {difference_text(found)}", fontsize=8)


def difference_text(found: Found) -> str:
    """A difference and its standard error: three decimals, or as many as show a digit of the error."""
    se = found["se"]
    decimals = max(3, -int(np.floor(np.log10(se)))) if se else 3
    return f"{found['difference']:+.{decimals}f}" + ("" if se is None else f" ± {se:.{decimals}f}")


def draw_pairs(panels: Panels, labels: tuple[str, str], path: Path) -> None:
    """A figure of paired panels: screens as thin lines, their mean dashed."""
    with house_style():
        figure = new_figure(2.2 * len(panels), 2.6)
        axes_of = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (found, title) in zip(axes_of, panels, strict=True):
            paired_panel(axes, found, title, labels)
    save_png(figure, path)


def draw_fast_cpu(row: Found, path: Path) -> None:
    """Held-out loss against counted FLOPs, and the recall at their end."""
    with house_style():
        figure = new_figure(7.2, 3.0)
        left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
        strip_axes(left, grid="y")
        strip_axes(right, grid="x")
        order = sorted(row["variants"], key=lambda v: v["recall"])
        for i, variant in enumerate(order):
            color = CYCLE[i % len(CYCLE)]
            x, y = zip(*variant["curve"], strict=True)
            if not variant["name"].startswith(
                "patch"
            ):  # losses of patches of another size are of another task
                left.plot(x, y, color=color, linewidth=2 if variant["name"] == "fast-cpu" else 1)
            right.errorbar(
                variant["recall"], i, xerr=variant["recall_se"], color=color, marker="o", markersize=4
            )
        right.set_yticks(range(len(order)), [v["name"] for v in order])
        right.set_xlabel("recall (one standard error)")
        left.set_xlabel("training TFLOP")
        left.set_ylabel("held-out masked loss")
    save_png(figure, path)


def draw_time_to_loss(file: Path, path: Path) -> None:
    """Held-out loss of the recipe's model against seconds, beside the plain loop: newest row of `file`."""
    rows = [json.loads(line) for line in file.open()]
    curves = [row for row in rows if row["case"] == "time to a validation loss"][-1]["curves"]
    with house_style():
        figure = new_figure(4.6, 2.8)
        axes = plain_axes(figure, grid="y")
        for name, label, color in (
            ("ours", "fast-cpu's model and decoder", 0),
            ("plain", "plain eager loop", 1),
        ):
            _, seconds, loss = zip(*curves[name], strict=True)
            axes.plot(seconds, loss, color=CYCLE[color], label=label)
        axes.set_xlabel("seconds on two cores, without validation")
        axes.set_ylabel("held-out masked loss")
        axes.legend(fontsize=8)
    save_png(figure, path)
