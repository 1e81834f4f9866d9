"""Rows and figures of bench/beyond.py and bench/fast_cpu.py: `python bench/beyond_rows.py [SIZE]` after the runs.

Appends rows to bench/results/<device>/beyond.jsonl and draws docs/figures/beyond_*.png ("cpu") or beyond_gpu_*.png.
Differences are paired by screen or training; their standard error is the standard deviation between them over sqrt(n).
An option helps where its mean difference (of a drop: its fall) is above two of them. A row that is there stays single.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from beyond import (
    ARMS,
    CHOOSING,
    FOLDER,
    LATER,
    LAYER_SPLITS,
    MASKING_ARMS,
    RECALL_GIVEN,
    SCREENS,
    SIZES,
    Setup,
)
from beyond_figures import draw_fast_cpu, draw_pairs, draw_share, draw_time_to_loss, panels_of
from rows import RESULTS, ROOT, append_row, device_name, difference

Found = dict[str, Any]
METRICS = ("recall", "separability", "consistency")
# Screens added to SCREENS. A share of 0.2 was set before any screen; 0.4 was chosen on CHOOSING.
POOLED = {"mask_channels": (*CHOOSING, *LATER), "mask_channels_04": LATER}
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


def drops(sets: Found, metric: str, read_out: str | None) -> list[float]:
    """What each missing channel costs: the score of all channels less that without it."""
    values = {k: (v[read_out] if read_out else v)[metric] for k, v in sets.items()}
    return [values[""] - value for key, value in values.items() if key]


def pairs_of(
    arm: str, without: str = "plain", screens: Sequence[int] = SCREENS
) -> list[tuple[str, Found, Found]]:
    """(screen, without, with) for the screens that both arms have run on."""
    runs = [(str(seed), read(without, str(seed)), read(arm, str(seed))) for seed in screens]
    return [(seed, a, b) for seed, a, b in runs if a is not None and b is not None]


def channel_row(
    arm: str, screens: Sequence[int] = SCREENS, case: str = "mask_channels on generated screens"
) -> Found | None:
    """Channel masking on screens: scores of all channels, and what a missing one costs."""
    runs = pairs_of(arm, screens=screens)
    if not runs:
        return None
    row: Found = {"op": "beyond", "case": case, "screens": [r[0] for r in runs]}
    row |= about(SETUP.screen, arm, runs)
    for read_out in READ_OUTS:
        for metric in METRICS:
            name = f"{read_out}_{metric}"
            row[name] = difference(*([x["sets"][""][read_out][metric] for x in side] for side in sides(runs)))
            lost = [[mean_drop(x, metric, read_out) for x in side] for side in sides(runs)]
            row[f"{name}_drop"] = difference(*lost, lower=True)
    pixels = [float(np.mean(drops(a["pixels"], "recall", None))) for _, a, _ in runs if a["pixels"]]
    drop = row["per_channel_recall_drop"]
    row["pixel_statistics_recall_drop"] = pixels
    row["target"] = "drop of recall with masking at most half of that without"
    row["holds"] = drop["mean_with"] <= 0.5 * drop["mean_without"]
    row["default"] = "off: recall with all channels is not above two standard errors better"
    if row["per_channel_recall"]["helps"]:
        row["default"] = "off until seen on more screens: above two standard errors"
    return row


def pooled_rows() -> list[Found]:
    """Channel masking on SCREENS and those of POOLED, for the shares that have run on all of them."""
    case = "mask_channels on generated screens, with screens added after the first three were seen"
    rows = []
    for arm, added in POOLED.items():
        row = channel_row(arm, (*added, *SCREENS), case)
        if row and len(row["screens"]) == len(added) + len(SCREENS):
            rows.append(row)
    return rows


def mean_drop(run: Found, metric: str, read_out: str) -> float:
    """Mean over the missing channels of what each costs."""
    return float(np.mean(drops(run["sets"], metric, read_out)))


def share_row() -> Found | None:
    """The share of hidden planes, chosen on the screens for choosing by the rule of bench/beyond.py."""
    arms = ("plain", *MASKING_ARMS)
    runs = {arm: [run for seed in CHOOSING if (run := read(arm, str(seed)))] for arm in arms}
    if any(len(found) < len(CHOOSING) for found in runs.values()):
        return None
    row: Found = {"op": "beyond", "case": "share of mask_channels, chosen on other screens"}
    row |= {"screens": [str(seed) for seed in CHOOSING], "steps": SETUP.screen[2]["steps"], "scores": {}}
    for arm, found in runs.items():
        scores: Found = {"option": ARMS[arm]}
        for read_out in READ_OUTS:
            for metric in ("recall", "consistency"):
                name = f"{read_out}_{metric}"
                scores[name] = [x["sets"][""][read_out][metric] for x in found]
                scores[f"{name}_drop"] = [mean_drop(x, metric, read_out) for x in found]
        row["scores"][arm] = scores
    mean = {
        arm: {k: float(np.mean(v)) for k, v in x.items() if k != "option"} for arm, x in row["scores"].items()
    }
    floor = mean["plain"]["per_channel_recall"] - RECALL_GIVEN
    allowed = [arm for arm in MASKING_ARMS if mean[arm]["per_channel_recall"] >= floor]
    row["rule"] = f"smallest mean drop of recall of the shares whose mean recall is at least {floor:.4f}"
    row["means"] = mean
    row["chosen"] = min(allowed, key=lambda arm: mean[arm]["per_channel_recall_drop"]) if allowed else None
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
    plains = [plain for seed in SETUP.jurkat_seeds if (plain := read("plain", f"jurkat-{seed}"))]
    if not plains:
        return []
    several = len(plains) > 1
    best, last = (
        of_cells([[x[key] for x in p["layers"]] for p in plains], several) for key in ("best", "last")
    )
    layer: Found = {"case": "evaluate layers on Jurkat cells", "accuracy": difference(best, last)}
    layer["chosen"] = [[int(x["chosen"]) for x in p["layers"]] for p in plains]
    rows = [layer, *(row for arm in MASKING_ARMS if (row := jurkat_channel_row(arm, several)))]
    base = {"op": "beyond", "steps": SETUP.jurkat[2]["steps"], "batch_size": SETUP.jurkat[2]["batch_size"]}
    base |= {
        "score": "balanced accuracy over seven phases",
        "spread": "over trainings, each a mean over seeds of the folds"
        if several
        else "over seeds of the folds, one training",
    }
    return [base | row for row in rows]


def jurkat_channel_row(arm: str, several: bool) -> Found | None:
    """Channel masking on the cells: accuracy of all channels and without each, and the mean drop."""
    runs = [(read("plain", f"jurkat-{s}"), read(arm, f"jurkat-{s}")) for s in SETUP.jurkat_seeds]
    both = [(plain, masked) for plain, masked in runs if plain and masked]
    if not both:
        return None
    row: Found = {"case": "mask_channels on Jurkat cells", "option": ARMS[arm]}
    for read_out in READ_OUTS:
        found: dict[str, list[list[float]]] = {
            key: [of_cells([x[i]["sets"][key][read_out] for x in both], several) for i in (0, 1)]
            for key in both[0][0]["sets"]
        }
        for key, (plain, masked) in found.items():
            row[f"{read_out}_{'without ' + key if key else 'all'}"] = difference(masked, plain)
        lost = [np.subtract(found[""], x) for key, x in found.items() if key]
        plain, masked = np.mean(lost, axis=0).tolist()
        row[f"{read_out}_drop"] = difference(masked, plain, lower=True)
    pixels = both[0][0]["pixels"]
    row["pixel_statistics"] = {key or "all": float(np.mean(v)) for key, v in pixels.items()}
    return row


def of_cells(accuracies: list[list[float]], several: bool) -> list[float]:
    """The values that a spread is taken over: a mean for each of several trainings, or the folds of one."""
    return [float(np.mean(a)) for a in accuracies] if several else accuracies[0]


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


def append_new(row: Found) -> None:
    """Append a row unless one of the same values is there."""
    path = RESULTS / device_name(DEVICE) / "beyond.jsonl"
    row = json.loads(json.dumps(row | {"size": SIZE}))
    known = [json.loads(line) for line in path.open()] if path.is_file() else []
    # Older rows name no size.
    if any(all(old.get(k, SIZE) == v for k, v in row.items()) for old in known):
        return
    append_row("beyond.jsonl", row, full=True, device=DEVICE)
    print(json.dumps(row, indent=1))


def main() -> None:
    share, fast = share_row(), fast_cpu_row()
    channels = {arm: row for arm in MASKING_ARMS if (row := channel_row(arm))}
    layer, cross, teacher, cells = layer_row(), cross_well_row(), teacher_row(), jurkat_rows()
    for row in (share, *channels.values(), *pooled_rows(), layer, cross, teacher, *cells, fast):
        if row is not None:
            append_new(row)
    if share:
        draw_share(share, FIGURES / f"{PREFIX}_share.png")
    chosen = share["chosen"] if share else "mask_channels"
    for name, panels, labels in panels_of(channels.get(chosen), layer, cross, teacher, cells):
        draw_pairs(panels, labels, FIGURES / f"{PREFIX}_{name}.png")
    if fast:
        draw_fast_cpu(fast, FIGURES / "beyond_fast_cpu.png")
    elif SIZE == "cpu":
        draw_time_to_loss(RESULTS / device_name("cpu") / "training.jsonl", FIGURES / "beyond_fast_cpu.png")


if __name__ == "__main__":
    main()
