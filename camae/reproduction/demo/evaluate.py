"""Evaluation of the demo: recall of every system, the trained encoder against the best baseline, screens pooled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from camae import maps
from camae.embedding_table import make_table, write_table
from camae.files import write_text
from camae.maps.arrays import Array, ArrayBackend, array_backend, to_numpy
from camae.maps.perturbation_map import ScreenMap, map_screen
from camae.reporting.run_folder import RunSummary, Score, ScreenScore

# Systems that need no training. The trained encoder is compared with the best of them.
BASELINES = ("untrained", "texture", "pixel", "cells", "position")
# Order of rows and bars: the encoder, the baselines, chance, the upper limit.
SYSTEMS = ("trained", *BASELINES, "shuffled", "random", "oracle")
# Read-out of the trained encoder, fixed beforehand: the mean over each channel's patch tokens (paper, Figure 4). The
# untrained one is given whichever of its read-outs recalls more.
READ_OUT = "mean"

_NORMAL = 2.0  # standard errors to either end of the 95 % interval of a mean over screens

Tables = Mapping[str, Sequence[pd.DataFrame]]
Maps = Mapping[str, Sequence[ScreenMap]]


def read_outs(wells: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Read-outs in a table of `pool="moments_per_channel"`: "mean", its means alone, and "moments", all of it."""
    deviations = [name for name in wells.columns if "_sd_" in name and not name.startswith("Metadata_")]
    return {"mean": wells.drop(columns=deviations), "moments": wells}


def evaluate(
    tables: Tables, pairs: np.ndarray, out: Path, arrays: str | ArrayBackend = "numpy"
) -> RunSummary:
    """Recall of every system after TVN and without it, pooled over seeds; writes the tables the report draws from.

    tables: a table of wells per seed, by system; those of "trained" and "untrained" hold moments (`read_outs`).
    arrays: library of the maps.
    """
    encoders = {
        system: {
            name: [map_screen(read_outs(wells)[name], backend=arrays) for wells in tables[system]]
            for name in ("mean", "moments")
        }
        for system in ("trained", "untrained")
    }
    scores = {
        system: {name: _recall(seeds, pairs) for name, seeds in read.items()}
        for system, read in encoders.items()
    }
    best = max(scores["untrained"], key=lambda name: scores["untrained"][name]["value"])
    chosen = {"trained": READ_OUT, "untrained": best}
    aligned: dict[str, Sequence[ScreenMap]] = {}
    plain: dict[str, Sequence[ScreenMap]] = {}
    for system in SYSTEMS:
        name = chosen.get(system)
        seeds = [read_outs(wells)[name] if name else wells for wells in tables[system]]
        aligned[system] = (
            encoders[system][name] if name else [map_screen(wells, backend=arrays) for wells in seeds]
        )
        plain[system] = [map_screen(wells, "none", backend=arrays) for wells in seeds]
    _write_curves(aligned, pairs, out)
    _write_map(aligned["trained"][0], pairs, out)
    recall = {system: _recall(seeds, pairs) for system, seeds in aligned.items()}
    differences = {system: _difference(aligned, system, pairs) for system in BASELINES}
    best_baseline = best_of(recall)
    return {
        "arrays": str(array_backend(arrays)),
        "alignment": {"method": "tvn", "batch": "plate", **aligned["trained"][0].options},
        "recall": recall,
        "recall_without_alignment": {system: _recall(seeds, pairs) for system, seeds in plain.items()},
        "read_outs": scores,
        "read_out": chosen,
        "trained_minus": differences,
        "trained_minus_untrained": differences["untrained"],
        "best_baseline": best_baseline,
        "trained_minus_best": differences[best_baseline],
    }


def best_of(recall: Mapping[str, Score]) -> str:
    """The baseline that recalls most."""
    return max(BASELINES, key=lambda system: recall[system]["value"])


def pool_screens(summaries: Mapping[int, RunSummary]) -> RunSummary:
    """Summary of several screens, by seed: means over screens, and the trained encoder against one best baseline.

    The best baseline is the one with the highest mean recall. Standard errors of a mean over n screens, which are
    independent: sqrt(sum of squares) / n of the screens' own; of a difference also the standard deviation between
    screens over sqrt(n), and the larger of the two counts. Intervals: of a mean, sqrt(sum of squares) / n of the
    screens' own on either side; of a difference, 2 standard errors on average, in the same proportion.
    """
    each = list(summaries.values())
    recall = {system: pool_scores([s["recall"][system] for s in each]) for system in SYSTEMS}
    plain = {system: pool_scores([s["recall_without_alignment"][system] for s in each]) for system in SYSTEMS}
    differences = {
        system: pool_scores([s["trained_minus"][system] for s in each], between=True) for system in BASELINES
    }
    best = best_of(recall)
    screens: list[ScreenScore] = [
        {
            "seed": seed,
            "trained": s["recall"]["trained"],
            "best_baseline": best,
            "baseline": s["recall"][best],
            "difference": s["trained_minus"][best],
        }
        for seed, s in summaries.items()
    ]
    return {
        "alignment": each[0]["alignment"],
        "recall": recall,
        "recall_without_alignment": plain,
        "trained_minus": differences,
        "trained_minus_untrained": differences["untrained"],
        "best_baseline": best,
        "trained_minus_best": differences[best],
        "screens": screens,
    }


def pool_scores(scores: Sequence[Score], between: bool = False) -> Score:
    """Mean of scores of independent screens; see `pool_screens`. between: count the spread between screens."""
    value_S = np.array([score["value"] for score in scores])
    own = error = _of_mean([score["se"] for score in scores])
    if between:
        error = max(error, float(value_S.std(ddof=1) / np.sqrt(len(scores))))
    pooled: Score = {"value": float(value_S.mean()), "se": error}
    if all("low" in score and "high" in score for score in scores):
        below = _of_mean([s["value"] - s["low"] for s in scores])
        above = _of_mean([s["high"] - s["value"] for s in scores])
        scale = 2 * _NORMAL * error / (below + above) if between and own > 0 else 1.0
        pooled["low"], pooled["high"] = pooled["value"] - scale * below, pooled["value"] + scale * above
    return pooled


def _of_mean(errors: Sequence[float]) -> float:
    """Error of a mean of independent values."""
    return float(np.sqrt(np.sum(np.square(errors))) / len(errors))


def _vectors(seeds: Sequence[ScreenMap]) -> list[Array]:
    return [mapped.vectors for mapped in seeds]


def _score(values: Mapping[str, float]) -> Score:
    return {"value": values["value"], "se": values["se"], "low": values["low"], "high": values["high"]}


def _recall(seeds: Sequence[ScreenMap], pairs: np.ndarray) -> Score:
    """Recall over all seeds of one system; every map of the screen has the same names in the same order."""
    return _score(maps.pooled_recall(_vectors(seeds), seeds[0].names, pairs))


def _difference(aligned: Maps, system: str, pairs: np.ndarray) -> Score:
    """Recall of the trained encoder less that of another system, paired over perturbations."""
    trained = aligned["trained"]
    found = maps.recall_difference(_vectors(trained), _vectors(aligned[system]), trained[0].names, pairs)
    return _score(found["difference"])


def _write_curves(aligned: Maps, pairs: np.ndarray, out: Path) -> None:
    """`recall_curves.csv`: recall against percentile of every system, mean over seeds."""
    curves = []
    for system, seeds in aligned.items():
        per_seed = pd.concat([maps.recall_curve(m.vectors, m.names, pairs) for m in seeds])
        mean = per_seed.groupby("percentile", as_index=False)["recall"].mean()
        curves.append(mean.assign(system=system))
    write_text(out / "recall_curves.csv", pd.concat(curves).to_csv(index=False))


def _write_map(mapped: ScreenMap, pairs: np.ndarray, out: Path) -> None:
    """`relationships.csv` (the 100 strongest, known ones marked) and `map.parquet` of one map."""
    strongest = maps.strongest(mapped.vectors, mapped.names, count=100, side="both")
    known = {frozenset(pair) for pair in pairs}
    strongest["known"] = [
        frozenset(pair) in known for pair in zip(strongest["a"], strongest["b"], strict=True)
    ]
    write_text(out / "relationships.csv", strongest.to_csv(index=False))
    table = make_table(pd.DataFrame({"Metadata_Perturbation": mapped.names}), to_numpy(mapped.vectors))
    write_table(out / "map.parquet", table, {"system": "trained, seed 0, TVN"})
