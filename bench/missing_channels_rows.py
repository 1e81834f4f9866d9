"""Row and figure of bench/missing_channels.py: `python bench/missing_channels_rows.py` after the runs.

A score is a mean over the trainings, a drop also over the channels left out. Differences are paired by screen, their
standard error is between screens; the same by training stands beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from beyond_figures import draw_pairs
from missing_channels import ARMS, FOLDER, NEVER, SCREENS, SEEDS, TRAINED_ON, TRAINING, scores, screen
from rows import ROOT, append_row, difference

from camae import maps
from camae.embedding_table import feature_columns, features_of, read_table
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
    for read_out, metric in product(READ_OUTS, METRICS):
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


def imputed_row(arm: str) -> Found:
    """What imputing the missing channel changes, by the first training."""
    seed = SEEDS[0]
    screens = [n for n in SCREENS if (FOLDER / arm / str(seed) / str(n) / "imputed.json").is_file()]
    row: Found = {
        "op": "beyond",
        "case": "a missing channel imputed",
        "option": ARMS[arm],
        "screens": screens,
    }
    for read_out, metric in product(READ_OUTS, METRICS):
        imputed, missing = (
            [drop(one(arm, number, how), read_out, metric) for number in screens]
            for how in ("imputed", "missing")
        )
        row[f"{read_out}_{metric}_drop"] = difference(imputed, missing, lower=True)
    return row


def mixed_row(arm: str) -> Found:
    """One plate of a screen without a channel: that channel imputed on it, against leaving the channel out everywhere.

    Features of each channel; means over the channels and over the plate that lacks it, by the first training.
    "dropped": four channels of every plate; "kept": four channels, those of whole plates encoded beside the fifth.
    """
    screens = imputed_screens(arm)
    values = np.array([mixed_scores(arm, number) for number in screens])  # (screens, kinds, metrics)
    row: Found = {
        "op": "beyond",
        "case": "one plate lacks a channel",
        "option": ARMS[arm],
        "screens": screens,
    }
    for i, metric in enumerate(METRICS):
        whole, imputed, dropped, kept = values[:, :, i].T.tolist()
        row[f"{metric}_imputed_dropped"] = difference(imputed, dropped)
        row[f"{metric}_imputed_kept"] = difference(imputed, kept)
        row[f"{metric}_imputed_whole"] = difference(imputed, whole)
    return row


def mixed_scores(arm: str, number: int) -> np.ndarray:
    """(4, 3): scores of the whole screen, and with a plate that lacks a channel imputed, dropped and kept."""
    manifest, pairs_file = screen(number)
    pairs, folder, n = maps.read_pairs(pairs_file), FOLDER / arm / str(SEEDS[0]) / str(number), len(ONLY_IN)
    table = wells(folder / "all")
    plates, metadata = table["Metadata_Plate"], table.filter(regex="^Metadata_").reset_index(drop=True)

    def scored(x_NCD: np.ndarray) -> list[float]:
        features = pd.DataFrame(x_NCD.reshape(len(x_NCD), -1))
        features.columns = feature_columns(features.shape[1])
        found = scores(pd.concat([metadata, features], axis=1), pairs, x_NCD.shape[1])["per_channel"]
        return [found[metric] for metric in METRICS]

    whole_NCD = features_of(table).reshape(len(table), n, -1)
    found = []
    for c, name in enumerate(manifest.channels):
        others = [features_of(wells(folder / f"{how}_{name}")) for how in ("imputed", "missing")]
        imputed_NCD, missing_NCD = (
            others[0].reshape(len(table), n, -1),
            others[1].reshape(len(table), n - 1, -1),
        )
        # Imputed channels come last.
        imputed_NCD = np.insert(imputed_NCD[:, :-1], c, imputed_NCD[:, -1], axis=1)
        for plate in plates.unique():
            lacks_N11 = (plates == plate).to_numpy()[:, None, None]
            imputed = np.where(lacks_N11, imputed_NCD, whole_NCD)
            kept = np.where(lacks_N11, missing_NCD, np.delete(whole_NCD, c, axis=1))
            found.append([scored(imputed), scored(missing_NCD), scored(kept)])
    return np.array([scored(whole_NCD), *np.mean(found, axis=0)])


def wells(folder: Path) -> pd.DataFrame:
    """The table of an output of `camae.embed_screen`."""
    return read_table(folder / "wells.parquet")[0]


def imputed_screens(arm: str) -> list[int]:
    """Screens on which channels were imputed."""
    return [n for n in SCREENS if (FOLDER / arm / str(SEEDS[0]) / str(n) / "imputed.json").is_file()]


def never_row(arm: str) -> Found:
    """Encoders of all channels with one missing, against encoders that were trained without it; first training.

    Differences are scores of the former less those of the latter, means over the channels.
    """
    row: Found = {"op": "beyond", "case": "a missing channel against an encoder that never had it"}
    row |= {"option": ARMS[arm], "screens": SCREENS}
    for read_out, metric in product(READ_OUTS, METRICS):
        missing = [
            np.mean([one(arm, number)[name][read_out][metric] for name in ONLY_IN]) for number in SCREENS
        ]
        never = [
            np.mean([one(NEVER + name, number)["all"][read_out][metric] for name in ONLY_IN])
            for number in SCREENS
        ]
        row[f"{read_out}_{metric}"] = difference(missing, never)
    return row


def one(arm: str, number: int, how: str = "missing") -> Found:
    """Scores of the first training of an arm."""
    found: Found = json.loads((FOLDER / arm / str(SEEDS[0]) / str(number) / f"{how}.json").read_text())
    return found


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


def say(row: Found) -> None:
    """Print the differences of a row."""
    print(row["case"], row.get("option", ""))
    for name, found in row.items():
        if isinstance(found, dict) and "difference" in found:
            by = f", by training {found['se_by_training']:.4f}" if "se_by_training" in found else ""
            print(
                f"  {name}: {found['mean_without']:.4f} -> {found['mean_with']:.4f}, "
                f"{found['difference']:+.4f} +- {found['se']:.4f}{by}"
            )
    for values in row.get("noise", []):
        print(" ", {name: round(float(value), 4) for name, value in values.items()})


def main() -> None:
    row = row_of(read("plain", "missing"), read(MASKED, "missing"))
    rows = [
        row,
        *(make(arm) for make in (imputed_row, mixed_row, never_row) for arm in ("plain", MASKED)),
        limit_row(),
    ]
    for found in rows:
        append_row("beyond.jsonl", json.loads(json.dumps(found)), full=True)
        say(found)
    titles = {
        "mean_recall_drop": "drop of recall, mean",
        "per_channel_recall_drop": "drop of recall, per channel",
        "per_channel_recall": "recall, per channel",
        "per_channel_consistency_drop": "consistency's, per channel",
    }
    panels = [(row[key], title) for key, title in titles.items()]
    draw_pairs(panels, ("plain", "40%"), ROOT / "docs" / "figures" / "beyond_missing.png")


if __name__ == "__main__":
    main()
