"""Significance of average precision: p values of queries and of groups of them, q values, and what is out of reach.

The null distribution is that of random rankings with as many positives and negatives (`camae.maps.nulls`): exact where
it can be listed or computed, else by permutation. A query has a smallest attainable p, that of a perfect ranking; with
few positives or negatives it is above what Benjamini-Hochberg asks, and no effect is strong enough.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from camae.errors import CamaeError
from camae.maps.exact_null import Size
from camae.maps.inputs import COUNT, check_result, check_seed, check_threshold, is_number
from camae.maps.nulls import (
    NULLS,
    Null,
    draws_needed,
    exceedances,
    null_average_precision,
    q_values,
    query_p_values,
    sequential_p_values,
)
from camae.maps.profile_pairs import columns

RULES = ("mean_log_p", "map_null")
_OF_QUERIES = ("n_pos_pairs", "n_total_pairs", "average_precision")  # columns that are read


def average_precision_p_values(
    ap: pd.DataFrame, null_size: int = 10_000, threshold: float = 0.05, seed: int = 0, null: Null = "auto"
) -> pd.DataFrame:
    """p value of every query's average precision, and the smallest that its ranking could give.

    Under the null hypothesis, that a query's positives are exchangeable with its negatives, p is uniform:
    P(p <= a) <= a, with equality (up to ties, and to the grid's rounding upward) wherever p can be a.

    Parameters
    ----------
    ap : DataFrame
        Result of `average_precision`.
    null_size, threshold, seed, null
        See `mean_average_precision`.

    Returns
    -------
    DataFrame
        `ap` with p_value, smallest_p_value (of a perfect ranking) and null: "exact" (all rankings listed, up to
        262,144 of them), "grid" (dynamic programming, p at most that of an average precision 1 / 8192 lower and never
        below the exact one) or "permutation".

    Raises
    ------
    CamaeError
        For an unknown null, or a threshold that is not between 0 and 1.
    """
    check_null_options(null, threshold, null_size, seed)
    check_result(ap, _OF_QUERIES, "maps.average_precision")
    p, smallest, source = query_p_values(
        ap.average_precision.to_numpy(), _sizes(ap), null_size, threshold, seed, null
    )
    return ap.assign(p_value=p, smallest_p_value=smallest, null=source)


def mean_average_precision(
    ap: pd.DataFrame,
    sameby: Sequence[str] | str,
    null_size: int = 10_000,
    threshold: float = 0.05,
    seed: int = 0,
    rule: str = "mean_log_p",
    null: Null = "auto",
) -> pd.DataFrame:
    """Mean average precision of groups of profiles, with p values and q values.

    Parameters
    ----------
    ap : DataFrame
        Result of `average_precision`.
    sameby : column name or sequence of them
        Columns whose values make a group, usually the perturbation.
    null_size : int
        Random rankings in each null distribution that is not exact; at the fewest, under null="auto".
    threshold : float
        False-discovery rate: groups with a q value below it are retrieved.
    seed : int
        Of the null distributions.
    rule : {"mean_log_p", "map_null"}
        "mean_log_p" averages -log10 p over the profiles of a group (the published CPJUMP1 rule). "map_null" compares
        the group's mean average precision with the mean of its profiles' null distributions (copairs' rule).
    null : {"auto", "permutation"}
        "auto" is exact where the numbers of positives and negatives allow it; else random rankings are added until
        the smallest p is below threshold / (2 queries), so that Benjamini-Hochberg can decide. "permutation" draws
        `null_size` random rankings whatever the size, as copairs does.

    Returns
    -------
    DataFrame
        One row for each group: the `sameby` columns, n_profiles, average_precision (mean),
        normalized_average_precision (mean), p_value, smallest_p_value, q_value, retrieved. Warns of groups that no
        ranking could retrieve.

    Raises
    ------
    CamaeError
        For an unknown column, rule or null, or a threshold that is not between 0 and 1.

    Notes
    -----
    Neither rule's group p is uniform on profiles without effect: the queries of a group share pairs, and their p
    values are averaged as if each told the same. The geometric mean of p values is at most e times too small
    (Vovk and Wang 2020, "Combining p-values via averaging"); it is too large where queries disagree. `maps.activity`
    has a p value of the group that is uniform, and `maps.calibration` shows all of them on controls.
    """
    check_null_options(null, threshold, null_size, seed)
    if rule not in RULES:
        raise CamaeError(f"unknown rule '{rule}'; choose one of {', '.join(RULES)}")
    check_result(ap, _OF_QUERIES, "maps.average_precision")
    by = columns(ap, sameby, "sameby")
    if not by:
        raise CamaeError("sameby names no column; name those whose values make a group")
    out = _group_p_values(ap, by, null_size, threshold, seed, rule, null)
    out["q_value"] = q_values(out.p_value.to_numpy())
    _warn_of_out_of_reach(out, by, threshold)
    return out.assign(retrieved=out.q_value < threshold)


def check_null_options(null: str, threshold: float, null_size: int, seed: int = 0) -> None:
    """Raise CamaeError for an unknown null, a threshold that is no rate, or numbers that cannot count or seed draws."""
    if null not in NULLS:
        raise CamaeError(f"unknown null '{null}'; choose one of {', '.join(NULLS)}")
    check_threshold(threshold)
    if not is_number(null_size, COUNT, whole=True):
        raise CamaeError(f"null_size {null_size} draws no ranking; give 1 or more, whole")
    check_seed(seed)


def _sizes(ap: pd.DataFrame) -> list[Size]:
    return list(zip(ap.n_pos_pairs.tolist(), ap.n_total_pairs.tolist(), strict=True))


def _group_p_values(
    ap: pd.DataFrame, by: list[str], null_size: int, level: float, seed: int, rule: str, null: Null
) -> pd.DataFrame:
    """Groups with n_profiles, mean average precisions, p_value by `rule` and smallest_p_value."""
    size, score = _sizes(ap), ap.average_precision.to_numpy()
    table = ap.assign(place=np.arange(len(ap)))
    if rule == "mean_log_p":
        p, smallest, _ = query_p_values(score, size, null_size, level, seed, null)
        table = table.assign(log_p=np.log10(p), log_smallest=np.log10(smallest))
    grouped = table.groupby(by, sort=True, observed=True)
    summary = {"n_profiles": ("place", "size"), "average_precision": ("average_precision", "mean")}
    if "normalized_average_precision" in ap:
        summary["normalized_average_precision"] = ("normalized_average_precision", "mean")
    out = grouped.agg(**summary).reset_index()
    if rule == "mean_log_p":
        out["p_value"] = 10 ** grouped.log_p.mean().to_numpy()
        out["smallest_p_value"] = 10 ** grouped.log_smallest.mean().to_numpy()
        return out
    members = [place.to_numpy() for _, place in grouped.place]
    mean = out.average_precision.to_numpy()
    own_sizes = [[size[i] for i in index] for index in members]
    last = null_size if null == "permutation" else draws_needed(len(ap), level, null_size)
    p, smallest = np.empty(len(out)), np.full(len(out), 1 / (last + 1))
    alike = np.array([len(set(own)) == 1 for own in own_sizes])
    if alike.any():  # the mean of one null with itself is that null
        firsts = [own[0] for own, same in zip(own_sizes, alike, strict=True) if same]
        # The number of queries stays that of all, for the resolution of the permutations.
        p[alike], smallest[alike], _ = query_p_values(
            mean[alike], firsts, null_size, level * int(alike.sum()) / len(ap), seed, null
        )
    mixed = np.flatnonzero(~alike)
    p[mixed] = _mixed_group_p_values(mean[mixed], [own_sizes[i] for i in mixed], null_size, last, seed)
    return out.assign(p_value=p, smallest_p_value=smallest)


def _mixed_group_p_values(
    mean: np.ndarray, sizes: list[list[Size]], first: int, last: int, seed: int
) -> np.ndarray:
    """p values of groups whose queries differ in size, by copairs' rule: the mean of the sizes' null distributions."""

    def count(pending: npt.NDArray[np.intp], draws: int, stage: int) -> npt.NDArray[np.int64]:
        listed = {size for group in pending for size in sizes[group]}
        nulls = {
            size: null_average_precision(size[0], size[1], draws, seed, stage) for size in sorted(listed)
        }
        means = (np.mean([nulls[size] for size in sizes[group]], axis=0) for group in pending)
        found = [exceedances(mean[group], null) for group, null in zip(pending, means, strict=True)]
        return np.array(found, dtype=np.int64)

    return sequential_p_values(count, len(mean), first, last)


def _warn_of_out_of_reach(groups: pd.DataFrame, by: list[str], threshold: float) -> None:
    """Warn of groups that even a perfect ranking would not retrieve, or only beside other retrieved ones."""
    smallest, n = groups.smallest_p_value.to_numpy(), len(groups)
    never = q_values(smallest) >= threshold
    alone = (smallest * n >= threshold) & ~never
    if not (never | alone).any():
        return
    worst = groups.iloc[int(np.argmax(smallest))]
    name = ", ".join(str(worst[column]) for column in by)
    parts = [f"{never.sum()} of {n} groups cannot be retrieved at q < {threshold:g}"] * bool(never.any())
    if alone.any():
        parts.append(
            f"{alone.sum()} of {n} groups can be retrieved at q < {threshold:g} only together with others"
        )
    warnings.warn(
        f"{' and '.join(parts)}, even by a perfect ranking: the smallest attainable p, up to {smallest.max():.2g} "
        f"({name}), is above {threshold:g} / {n}; more replicates or more negatives lower it",
        stacklevel=5,  # past `takes_tensors`
    )
