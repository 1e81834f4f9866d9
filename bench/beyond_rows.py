"""Rows and figures of bench/beyond.py and bench/fast_cpu.py: `python bench/beyond_rows.py [SIZE]` after the runs.

Appends rows to bench/results/<device>/beyond.jsonl and draws docs/figures/beyond_*.png ("cpu") or beyond_gpu_*.png.
Differences are paired by screen or training; their standard error is the standard deviation between them over sqrt(n).
An option helps where its mean difference is above two of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from beyond import ARMS, FOLDER, LAYER_SPLITS, SCREENS, SIZES, Setup
from matplotlib.axes import Axes
from rows import RESULTS, ROOT, append_row, device_name

from camae.reporting.style import CYCLE, INK, house_style, new_figure, plain_axes, save_png, strip_axes

Found = dict[str, Any]
METRICS = ("recall", "separability", "consistency")
READ_OUTS = ("per_channel", "mean")
FIGURES = ROOT / "docs" / "figures"
SIZE = sys.argv[1] if len(sys.argv) > 1 else "cpu"
SETUP = SIZES[SIZE]
DEVICE = "cuda" if SIZE == "gpu" else "cpu"
PREFIX = "beyond_gpu" if SIZE == "gpu" else "beyond"


def read(arm: str, data: str) -> Found | None:
    """What one run measured; None where it has not run."""
    path = FOLDER / SIZE / arm / data / "measured.json"
    return json.loads(path.read_text()) if path.is_file() else None


def difference(with_it: Sequence[float], without: Sequence[float]) -> Found:
    """Means, paired difference and its standard error, and whether that is above two of them."""
    d = np.asarray(with_it) - np.asarray(without)
    error = float(d.std(ddof=1) / np.sqrt(len(d))) if len(d) > 1 else None
    return {
        "with": list(with_it),
        "without": list(without),
        "mean_with": float(np.mean(with_it)),
        "mean_without": float(np.mean(without)),
        "difference": float(d.mean()),
        "se": error,
        "helps": bool(error is not None and d.mean() > 2 * error),
    }


def drops(sets: Found, metric: str, read_out: str | None) -> list[float]:
    """What each missing channel costs: the score of all channels less that without it."""
    values = {k: (v[read_out] if read_out else v)[metric] for k, v in sets.items()}
    return [values[""] - value for key, value in values.items() if key]


def pairs_of(arm: str, without: str = "plain") -> list[tuple[str, Found, Found]]:
    """(screen, without, with) for the screens that both arms have run on."""
    runs = [(str(seed), read(without, str(seed)), read(arm, str(seed))) for seed in SCREENS]
    return [(seed, a, b) for seed, a, b in runs if a is not None and b is not None]


def channel_row() -> Found | None:
    """Channel masking on the screens: scores of all channels, and what a missing one costs."""
    runs = pairs_of("mask_channels")
    if not runs:
        return None
    row: Found = {
        "op": "beyond",
        "case": "mask_channels on generated screens",
        "screens": [r[0] for r in runs],
    }
    row |= about(SETUP.screen, "mask_channels", runs)
    for read_out in READ_OUTS:
        for metric in METRICS:
            name = f"{read_out}_{metric}"
            row[name] = difference(*([x["sets"][""][read_out][metric] for x in side] for side in sides(runs)))
            lost = [
                [float(np.mean(drops(x["sets"], metric, read_out))) for x in side] for side in sides(runs)
            ]
            row[f"{name}_drop"] = difference(*lost)
    pixels = [float(np.mean(drops(a["pixels"], "recall", None))) for _, a, _ in runs if a["pixels"]]
    drop = row["per_channel_recall_drop"]
    row["pixel_statistics_recall_drop"] = pixels
    row["target"] = "drop of recall with masking at most half of that without"
    row["holds"] = drop["mean_with"] <= 0.5 * drop["mean_without"]
    row["default"] = "off: recall with all channels is not above two standard errors better"
    if row["per_channel_recall"]["helps"]:
        row["default"] = "off until seen on more screens: above two standard errors"
    return row


def sides(runs: list[tuple[str, Found, Found]]) -> tuple[list[Found], list[Found]]:
    """(with the option, without) in the order that `difference` takes."""
    return [b for _, _, b in runs], [a for _, a, _ in runs]


def about(setup: Setup, arm: str, runs: list[tuple[str, Found, Found]]) -> Found:
    """What was run."""
    return {
        "option": ARMS[arm],
        "steps": setup[2]["steps"],
        "batch_size": setup[2]["batch_size"],
        "train_seconds": difference(*([x["train_seconds"] for x in side] for side in sides(runs))),
    }


def layer_row() -> Found | None:
    """Chosen block against the last one on held-out perturbations, means over the splits of each screen."""
    runs = [(str(seed), read("plain", str(seed))) for seed in SCREENS]
    found = [(seed, run["layers"]) for seed, run in runs if run and run["layers"]]
    if not found:
        return None
    row: Found = {
        "op": "beyond",
        "case": "evaluate layers on generated screens",
        "screens": [s for s, _ in found],
    }
    row |= {"steps": SETUP.screen[2]["steps"], "splits": len(LAYER_SPLITS)}
    row["chosen"] = [[int(split["chosen"]) for split in splits] for _, splits in found]
    for metric in ("separability", "consistency"):
        best, last = (
            [float(np.mean([x[f"{which}_{metric}"] for x in splits])) for _, splits in found]
            for which in ("best", "last")
        )
        row[metric] = difference(best, last)
    helps = row["separability"]["helps"] and row["consistency"]["helps"]
    row["default"] = "the last block, with its norm" + ("; layers='best' helps here" if helps else "")
    return row


def jurkat_rows() -> list[Found]:
    """Jurkat cells: balanced accuracy of the chosen block, and of channel masking with and without each channel."""
    runs = [(read("plain", f"jurkat-{s}"), read("mask_channels", f"jurkat-{s}")) for s in SETUP.jurkat_seeds]
    plains = [plain for plain, _ in runs if plain]
    if not plains:
        return []
    base = {"op": "beyond", "steps": SETUP.jurkat[2]["steps"], "batch_size": SETUP.jurkat[2]["batch_size"]}
    several = len(plains) > 1
    base |= {
        "score": "balanced accuracy over seven phases",
        "spread": "over trainings, each a mean over seeds of the folds"
        if several
        else "over seeds of the folds, one training",
    }

    def values(accuracies: list[list[float]]) -> list[float]:
        return [float(np.mean(a)) for a in accuracies] if several else accuracies[0]

    best, last = (values([[x[which] for x in p["layers"]] for p in plains]) for which in ("best", "last"))
    layer: Found = {"case": "evaluate layers on Jurkat cells", "accuracy": difference(best, last)}
    layer["chosen"] = [[int(x["chosen"]) for x in p["layers"]] for p in plains]
    rows = [base | layer]
    both = [(plain, masked) for plain, masked in runs if plain and masked]
    if both:
        row: Found = {"case": "mask_channels on Jurkat cells", "option": ARMS["mask_channels"]}
        for read_out in READ_OUTS:
            for key in both[0][0]["sets"]:
                plain, masked = (values([x[i]["sets"][key][read_out] for x in both]) for i in (0, 1))
                row[f"{read_out}_{'without ' + key if key else 'all'}"] = difference(masked, plain)
        pixels = both[0][0]["pixels"]
        row["pixel_statistics"] = {key or "all": float(np.mean(v)) for key, v in pixels.items()}
        rows.append(base | row)
    return rows


def teacher_row() -> Found | None:
    """A small encoder with the plain arm's as teacher, against the same small encoder alone."""
    runs = pairs_of("small_taught", "small")
    if not runs:
        return None
    row: Found = {"op": "beyond", "case": "teacher on generated screens", "screens": [r[0] for r in runs]}
    row |= about(SETUP.student, "small_taught", runs)
    for read_out in READ_OUTS:
        for metric in METRICS:
            scores = ([x["sets"][""][read_out][metric] for x in side] for side in sides(runs))
            row[f"{read_out}_{metric}"] = difference(*scores)
    teachers = [found for seed in row["screens"] if (found := read("plain", seed))]
    row["teacher_recall"] = [found["sets"][""]["per_channel"]["recall"] for found in teachers]
    row["default"] = "off: a teacher is always named"
    return row


def cross_well_row() -> Found | None:
    """The cross-well term: scores of all perturbations, and of those whose labels training did not see."""
    runs = pairs_of("cross_well")
    if not runs:
        return None
    row: Found = {"op": "beyond", "case": "cross_well on generated screens", "screens": [r[0] for r in runs]}
    row |= about(SETUP.screen, "cross_well", runs)
    for metric in (*METRICS, "held_out_separability", "held_out_consistency"):
        scores = ([x["sets"][""]["per_channel"][metric] for x in side] for side in sides(runs))
        row[metric] = difference(*scores)
    row["jurkat"] = "not measured: the cells have no wells, and their phases are the labels that are scored"
    helps = row["held_out_separability"]["helps"] and row["held_out_consistency"]["helps"]
    row["default"] = "off" + ("; helps on perturbations it has not seen" if helps else "")
    return row


def fast_cpu_row() -> Found | None:
    """The recipe and its variants at equal FLOPs."""
    found = (
        []
        if SIZE != "cpu"
        else [json.loads(p.read_text()) for p in sorted((FOLDER / "fast_cpu").glob("*.json"))]
    )
    if not found:
        return None
    return {"op": "beyond", "case": "fast-cpu and its variants at equal FLOPs", "variants": found}


def paired_panel(axes: Axes, found: Found, title: str, labels: tuple[str, str]) -> None:
    """Two columns of points, one line a screen, and the means."""
    strip_axes(axes, grid="y")
    for i, (a, b) in enumerate(zip(found["without"], found["with"], strict=True)):
        axes.plot((0, 1), (a, b), color=CYCLE[i], marker="o", markersize=4, linewidth=1.1)
    axes.plot(
        (0, 1), (found["mean_without"], found["mean_with"]), color=INK, linewidth=2, linestyle=(0, (4, 2))
    )
    axes.set_xticks((0, 1), labels)
    axes.set_xlim(-0.3, 1.3)
    se = "" if found["se"] is None else f" ± {found['se']:.3f}"
    axes.set_title(f"{title}\ndifference {found['difference']:+.3f}{se}", fontsize=8)


def draw(name: str, panels: Sequence[tuple[Found, str]], labels: tuple[str, str]) -> None:
    """A figure of paired panels: screens as thin lines, their mean dashed."""
    with house_style():
        figure = new_figure(2.2 * len(panels), 2.6)
        axes_of = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (found, title) in zip(axes_of, panels, strict=True):
            paired_panel(axes, found, title, labels)
    save_png(figure, FIGURES / f"{PREFIX}_{name}.png")


def draw_fast_cpu(row: Found) -> None:
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
    save_png(figure, FIGURES / "beyond_fast_cpu.png")


def draw_time_to_loss() -> None:
    """Held-out loss of the recipe's model against seconds, beside the plain loop: newest row of the training bench."""
    rows = [json.loads(line) for line in (RESULTS / device_name("cpu") / "training.jsonl").open()]
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
    save_png(figure, FIGURES / "beyond_fast_cpu.png")


def main() -> None:
    channels, layer, cross, fast = channel_row(), layer_row(), cross_well_row(), fast_cpu_row()
    for row in (channels, layer, cross, teacher := teacher_row(), *jurkat_rows(), fast):
        if row is not None:
            append_row("beyond.jsonl", row | {"size": SIZE}, full=True, device=DEVICE)
            print(json.dumps(row, indent=1))
    if channels:
        shown = (
            ("per_channel_recall", "recall, all channels"),
            ("per_channel_recall_drop", "drop, per channel"),
        )
        shown += (("mean_recall_drop", "drop, mean read-out"),)
        draw("channels", [(channels[k], title) for k, title in shown], ("plain", "masked"))
    if layer:
        draw("layers", [(layer[k], k) for k in ("separability", "consistency")], ("last", "chosen"))
    if cross:
        names = ("recall", "held_out_separability", "held_out_consistency")
        titles = ("recall", "separability,\nheld out", "consistency,\nheld out")
        draw(
            "cross_well", [(cross[k], t) for k, t in zip(names, titles, strict=True)], ("plain", "cross-well")
        )
    if teacher:
        names = ("per_channel_recall", "per_channel_separability", "per_channel_consistency")
        draw(
            "teacher",
            [(teacher[k], k.removeprefix("per_channel_")) for k in names],
            ("alone", "with a teacher"),
        )
    if fast:
        draw_fast_cpu(fast)
    elif SIZE == "cpu":
        draw_time_to_loss()


if __name__ == "__main__":
    main()
