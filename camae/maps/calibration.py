"""Calibration: p values of controls against controls, where nothing acts and p should be uniform."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
import pandas as pd

from camae.errors import CamaeError
from camae.maps.activity import check_activity_options, exchange_tests
from camae.maps.arrays import Array, Labels, Mask, rows, takes_tensors
from camae.maps.distances import Distance
from camae.maps.inputs import COUNT, batches, check_number, check_result, control_rows, embeddings, labels
from camae.maps.label_exchange import MEASURES
from camae.maps.retrieval import average_precision
from camae.maps.significance import (
    average_precision_p_values,
    check_null_options,
    mean_average_precision,
)

# Test -> what it is called in tables and figures.
TESTS = {
    "query": "average precision, each query",
    "mean_log_p": "average precision, mean of log p",
    "map_null": "average precision, null of the mean",
    "average_precision": "average precision, labels exchanged",
    "mahalanobis": "Mahalanobis distance, labels exchanged",
    "energy": "energy distance, labels exchanged",
}
_LEVEL = 0.01  # of the bound of the Kolmogorov-Smirnov distance
_THRESHOLD = 0.05  # false-discovery rate that permutations go on to decide at
_GROUP = "camae_group"


@takes_tensors
def calibration(
    x: Array,
    control: Mask,
    batch: Labels | None = None,
    group: Labels | None = None,
    *,
    replicates: int = 4,
    seed: int = 0,
    distance: Distance = "cosine",
    permutations: int = 1000,
    null_size: int = 10_000,
) -> pd.DataFrame:
    """Calibration of retrieval and activity: p values of groups of controls against the other controls.

    With random groups nothing but chance makes a group, so p values should be uniform: a test whose p are smaller than
    that finds effects where there are none. With groups of one well position, whatever departs from uniform is the
    plate's layout. Controls that an alignment was fitted on are not fit for this; hold some out (`split_controls`).

    Parameters
    ----------
    x : (n, d) array
        Profiles, aligned as those to be judged; NumPy, CuPy or torch.
    control : n booleans
        True for negative controls (held out from the alignment).
    batch : n labels, optional
        Plate of each row; one for all by default.
    group : n labels, optional
        Groups of the controls, such as their well positions; random groups by default, of `replicates` controls
        that lie on as many plates as there are, as perturbations do.
    replicates : int
        Controls in a random group.
    seed : int
        Of the groups and nulls.
    distance : {"cosine", "correlation", "euclidean"}
        Of average precision.
    permutations, null_size
        See `activity` and `mean_average_precision`.

    Returns
    -------
    DataFrame
        One row for each p value: test, group, p_value. test is "query" (`average_precision_p_values`; one query of
        each group, so that queries do not share pairs), "mean_log_p" and "map_null" (`mean_average_precision`) with
        negatives of the same batch; "average_precision", "mahalanobis" and "energy" (`activity`).

    Raises
    ------
    CamaeError
        When no row is a control, no group of controls has two rows, or for options that `activity` refuses.
    """
    check_activity_options(_THRESHOLD, permutations, seed)
    check_null_options("auto", _THRESHOLD, null_size)
    check_number(replicates, "replicates", COUNT, whole=True)
    x = embeddings(x)
    n = x.shape[0]
    chosen = control_rows(control, n)
    batch_N = np.full(n, "all") if batch is None else batches(batch, n)
    rng = np.random.default_rng(seed)
    if group is None:
        number = _random_groups(batch_N[chosen], replicates, rng)
        kept = chosen[number >= 0]
        name_N = np.array([f"group {i}" for i in number[number >= 0]])
    else:
        name_N, kept = labels(group, n, "group")[chosen], chosen
    repeated = pd.Series(name_N).value_counts()
    asked = pd.Series(name_N).isin(repeated.index[repeated > 1]).to_numpy()
    if not asked.any():
        raise CamaeError(
            f"no group of the {len(chosen)} controls has two rows; calibration needs controls in groups of {replicates}"
            if group is None
            else "no group of the controls has two rows; give groups such as well positions over several plates"
        )
    z, own_batch = rows(x, kept), batch_N[kept]
    retrieved = _retrieval_p_values(z, name_N, own_batch, asked, distance, null_size, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a plate may have the controls of one group alone
        exchanged = exchange_tests(
            *(z, name_N, pd.factorize(own_batch)[0], np.ones(len(kept), dtype=bool)),
            first=permutations,
            threshold=_THRESHOLD,
            seed=seed,
            distance=distance,
            max_controls=512,
            max_replicates=64,
            others=asked,
        )
    parts = [
        pd.DataFrame({"test": m, "group": exchanged.perturbation, "p_value": exchanged[f"{m}_p_value"]})
        for m in MEASURES
    ]
    return pd.concat([*retrieved, *parts], ignore_index=True)


def _random_groups(batch_N: np.ndarray, replicates: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Group number of each control, -1 for those left over: each group takes from the fullest batches in turn."""
    left = {name: rng.permutation(np.flatnonzero(batch_N == name)).tolist() for name in np.unique(batch_N)}
    number = np.full(len(batch_N), -1)
    for group in range(len(batch_N) // max(replicates, 2)):
        taken: list[int] = []
        while len(taken) < replicates:
            fullest = sorted(left, key=lambda name: -len(left[name]))
            for name in fullest[: replicates - len(taken)]:
                if left[name]:
                    taken.append(left[name].pop())
        number[taken] = group
    return number


def _retrieval_p_values(
    z: Array,
    name_N: np.ndarray,
    batch_N: np.ndarray,
    asked: npt.NDArray[np.bool_],
    distance: Distance,
    null_size: int,
    seed: int,
) -> list[pd.DataFrame]:
    meta = pd.DataFrame({_GROUP: name_N, "batch": batch_N})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is out of reach of Benjamini-Hochberg is no matter here
        ap = average_precision(z, meta, _GROUP, [], "batch", _GROUP, query=asked, distance=distance)
        each = average_precision_p_values(ap, null_size, seed=seed)
        # A group's queries share pairs: one of each keeps them as independent as the shared negatives allow.
        # pandas takes no larger number for a seed.
        order = seed if seed < 2**32 else np.random.default_rng(seed)
        first = each.sample(frac=1, random_state=order).drop_duplicates(_GROUP).sort_index()
        found = {"query": first}
        for rule in ("mean_log_p", "map_null"):
            found[rule] = mean_average_precision(ap, _GROUP, null_size, seed=seed, rule=rule)
    return [
        pd.DataFrame({"test": test, "group": table[_GROUP], "p_value": table.p_value})
        for test, table in found.items()
    ]


def calibration_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Distance of p values from uniform, of each test.

    Parameters
    ----------
    table : DataFrame
        Result of `calibration`.

    Returns
    -------
    DataFrame
        test, n, share_below_05 and share_below_01 (.05 and .01 where calibrated), too_small: the largest excess of
        the share of p <= a over a (the one-sided Kolmogorov-Smirnov distance), too_large: the largest lack of it, and
        bound: what neither exceeds by chance, with probability .99, for n independent p values, sqrt(log(2 / .01) /
        (2 n)) (Dvoretzky, Kiefer and Wolfowitz 1956; Massart 1990). A test is unsafe where too_small exceeds the bound
        and only cautious where too_large does.
    """
    check_result(table, ["test", "p_value"], "maps.calibration")
    found = []
    for test, part in table.dropna(subset="p_value").groupby("test", sort=False):
        p = np.sort(part.p_value.to_numpy())
        n = len(p)
        found.append(
            {
                "test": str(test),
                "n": n,
                "share_below_05": float((p <= 0.05).mean()),
                "share_below_01": float((p <= 0.01).mean()),
                "too_small": float(max((np.arange(1, n + 1) / n - p).max(), 0)),
                "too_large": float(max((p - np.arange(n) / n).max(), 0)),
                "bound": float(np.sqrt(np.log(2 / _LEVEL) / (2 * n))),
            }
        )
    return pd.DataFrame(found)
