"""Row and figure of bench/missing_channels.py: `python bench/missing_channels_rows.py` after the runs.

A score is a mean over the trainings, a drop also over the channels left out. Differences are paired by screen, their
standard error is between screens; the same by training stands beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from beyond_figures import draw_pairs
from missing_channels import ARMS, FOLDER, SCREENS, SEEDS, TRAINED_ON, TRAINING
from rows import ROOT, append_row, difference

from camae import maps
from camae.reproduction.demo.screen_design import design
from camae.reproduction.demo.screen_parameters import FACTORS, ScreenParameters

READ_OUTS = ("mean", "per_channel")
METRICS = ("recall", "percentile", "consistency")
MASKED = "mask_channels_04"
# Factors of the generator that a single channel shows (reproduction/demo/organelles.py); nucleoli are in RNA and in ER,
# the shapes of cells and nuclei in several.
ONLY_IN = {
    "DNA": ("chromatin_granularity",),
    "ER": ("er_spread", "er_texture_scale"),
    "RNA": (),
    "AGP": ("actin_order", "golgi_compactness"),
    "Mito": ("mito_fragmentation", "mito_clustering"),
}
FACTOR_NOISE = (0.0, 0.5, 1.0, 1.25, 1.5, 2.0, 2.5)
DESIGNS = range(9000, 9100)
Found = dict[str, Any]


def read(arm: str, how: str) -> dict[int, list[Found]]:
    """By screen, the scores of each training; only screens that all trainings are scored on."""
    found = {}
    for number in SCREENS:
        paths = [FOLDER / arm / str(seed) / str(number) / f"{how}.json" for seed in SEEDS]
        if all(path.is_file() for path in paths):
            found[number] = [json.loads(path.read_text()) for path in paths]
    return found


def all_channels(run: Found, read_out: str, metric: str) -> float:
    """The score of all channels."""
    return float(run["all"][read_out][metric])


def drop(run: Found, read_out: str, metric: str) -> float:
    """What a missing channel costs, mean over the channels."""
    parts = [
        scores[read_out][metric] for key, scores in run.items() if key not in ("all", "seconds", "commit")
    ]
    return float(run["all"][read_out][metric] - np.mean(parts))


def row_of(plain: dict[int, list[Found]], masked: dict[int, list[Found]]) -> Found:
    """Channel masking against the same training without it."""
    screens = sorted(plain.keys() & masked.keys())
    row: Found = {"op": "beyond", "case": "mask_channels, missing channels on screens not trained on"}
    row |= {"option": ARMS[MASKED], "trained_on": TRAINED_ON, "screens": screens, "trainings": len(SEEDS)}
    row |= {"recipe": TRAINING["recipe"], "steps": TRAINING["steps"]}
    for read_out in READ_OUTS:
        for metric in METRICS:
            name = f"{read_out}_{metric}"
            whole, lost = (
                [table(side, screens, of, read_out, metric) for side in (masked, plain)]
                for of in (all_channels, drop)
            )
            row[name] = paired(*whole)
            row[f"{name}_drop"] = paired(*lost, lower=True)
            # Below 0: the drop is less than half of that without masking.
            row[f"{name}_drop_less_half"] = paired(lost[0], lost[1] / 2, lower=True)
    row["target"] = "drop of recall with masking at most half of that without"
    found = row["mean_recall_drop"]
    row["holds"] = bool(found["mean_with"] <= 0.5 * found["mean_without"])
    return row


def limit_row() -> Found:
    """Recall of the true factors with noise, and its drop without the factors that one channel alone shows.

    What a channel's absence costs any reading of that accuracy: the noise (standard deviations of untreated cells) is
    the same on every factor, the drop a mean over the five channels, the screens are designs of other seeds.
    """
    row: Found = {
        "op": "beyond",
        "case": "true factors with noise, without those of one channel",
        "noise": [],
    }
    for noise in FACTOR_NOISE:
        found = []
        for seed in DESIGNS:
            screen = design(replace(ScreenParameters(), seed=seed))
            rng = np.random.default_rng(seed)
            x_PF = screen.effect_PF + noise * rng.standard_normal(screen.effect_PF.shape)

            def recall(x: np.ndarray, names: list[str], pairs: np.ndarray) -> float:
                return float(maps.recall(x, names, pairs).iloc[0]["recall"])

            names, pairs = list(screen.names), np.array(screen.pairs)
            whole = recall(x_PF, names, pairs)
            gone = [[FACTORS.index(name) for name in of_channel] for of_channel in ONLY_IN.values()]
            found.append(
                [whole, whole - np.mean([recall(np.delete(x_PF, g, 1), names, pairs) for g in gone])]
            )
        mean, error = np.mean(found, 0), np.std(found, 0, ddof=1) / np.sqrt(len(found))
        row["noise"].append(
            {"sd": noise, "recall": mean[0], "recall_se": error[0], "drop": mean[1], "drop_se": error[1]}
        )
    return row


def table(
    side: dict[int, list[Found]],
    screens: list[int],
    of: Callable[[Found, str, str], float],
    read_out: str,
    metric: str,
) -> np.ndarray:
    """(screens, trainings) values of one score."""
    return np.array([[of(run, read_out, metric) for run in side[number]] for number in screens])


def paired(with_it: np.ndarray, without: np.ndarray, *, lower: bool = False) -> Found:
    """Difference by screen, of means over trainings, and by training, of means over screens."""
    found = difference(with_it.mean(1).tolist(), without.mean(1).tolist(), lower=lower)
    by_training = difference(with_it.mean(0).tolist(), without.mean(0).tolist())
    return found | {"by_training": (with_it - without).mean(0).tolist(), "se_by_training": by_training["se"]}


def main() -> None:
    row = row_of(read("plain", "missing"), read(MASKED, "missing"))
    append_row("beyond.jsonl", json.loads(json.dumps(row)), full=True)
    for name in READ_OUTS:
        for metric in METRICS:
            for end in ("", "_drop", "_drop_less_half"):
                found = row[f"{name}_{metric}{end}"]
                print(
                    f"{name}_{metric}{end}: {found['mean_without']:.4f} -> {found['mean_with']:.4f}, "
                    f"{found['difference']:+.4f} +- {found['se']:.4f} (by training {found['se_by_training']:.4f})"
                )
    titles = {
        "mean_recall": "recall, all channels",
        "mean_recall_drop": "drop of recall",
        "mean_percentile_drop": "drop of percentile",
        "mean_consistency_drop": "drop of consistency",
    }
    panels = [(row[key], title) for key, title in titles.items()]
    draw_pairs(panels, ("plain", "40%"), ROOT / "docs" / "figures" / "beyond_missing.png")


if __name__ == "__main__":
    main()
