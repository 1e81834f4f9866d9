"""Perturbation detection and sibling retrieval (paper, section 5.3, Table 4; CPJUMP1 benchmark).

Each query ranks its positives (replicates, siblings) among its negatives (controls, other targets) by cosine;
average precision (AP) is compared with random rankings of the same size, perturbations are adjusted together by
Benjamini-Hochberg. AP needs no sort: a positive's place is the number of negatives above it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from camae.errors import CamaeError
from camae.maps.arrays import embeddings, mask, namespace, to_numpy, unit_rows
from camae.maps.nulls import null_average_precision, p_values, q_values
from camae.maps.profile_pairs import Negatives, Queries, columns, find_queries

BLOCK_VALUES = 1 << 23  # cosines held at once
FEW = 64  # positives up to which counting beats sorting the negatives
# Cosines closer than this count as tied under ties="expected": rounding must not rank identical profiles.
TIE_GRID = {4: 2.0**20, 8: 2.0**40}
RULES = ("mean_log_p", "map_null")


def retrieval(
    x: Any,
    meta: pd.DataFrame,
    pos_sameby: Sequence[str] | str,
    pos_diffby: Sequence[str] | str,
    neg_sameby: Sequence[str] | str,
    neg_diffby: Sequence[str] | str,
    null_size: int = 10_000,
    seed: int = 0,
    ties: str = "expected",
    *,
    sameby: Sequence[str] | str | None = None,
    rule: str = "mean_log_p",
    threshold: float = 0.05,
    query: Any = None,
    absolute: bool = False,
    multilabel: str | None = None,
    separator: str = "|",
) -> pd.DataFrame:
    """AP, permutation p and FDR q of each group of profiles; the fraction retrieved is `out.retrieved.mean()`.

    x: (n, d); meta: n rows. The four pair rules are copairs' (see `camae.maps.profile_pairs`). sameby: columns whose
    values make a group (default pos_sameby). rule: "mean_log_p" averages -log10 p of the group's profiles (the
    published CPJUMP1 rule); "map_null" compares the group's mean AP with the mean of its profiles' nulls (copairs).
    threshold: FDR level. query: n booleans, the rows scored (default all; leave controls out, they only serve as
    negatives). absolute: rank by |cosine|. multilabel: the column among pos_sameby / neg_diffby that holds several
    labels joined by `separator`. ties: "expected" gives the mean AP over orders of tied cosines, "copairs" ranks
    tied positives first.
    Returns one row per group: the sameby columns, n_profiles, average_precision (mean), p_value, q_value,
    retrieved. Raises CamaeError for unknown columns, no positives, no negatives.
    """
    if rule not in RULES:
        raise CamaeError(f"Unknown rule '{rule}'; choose one of {', '.join(RULES)}.")
    ap = average_precision(
        x,
        meta,
        pos_sameby,
        pos_diffby,
        neg_sameby,
        neg_diffby,
        ties=ties,
        query=query,
        absolute=absolute,
        multilabel=multilabel,
        separator=separator,
    )
    return mean_average_precision(ap, sameby or pos_sameby, null_size, threshold, seed, rule)


def average_precision(
    x: Any,
    meta: pd.DataFrame,
    pos_sameby: Sequence[str] | str,
    pos_diffby: Sequence[str] | str,
    neg_sameby: Sequence[str] | str,
    neg_diffby: Sequence[str] | str,
    *,
    ties: str = "expected",
    query: Any = None,
    absolute: bool = False,
    multilabel: str | None = None,
    separator: str = "|",
) -> pd.DataFrame:
    """AP of every profile that has a positive and a negative pair (of every profile and label with multilabel=).

    Arguments as in `retrieval`. Returns meta's columns for these rows, in order, with the index of meta, and
    n_pos_pairs, n_total_pairs, average_precision; the multi-label column then holds the one label asked for.
    """
    if ties not in ("expected", "copairs"):
        raise CamaeError(f"Unknown ties '{ties}'; choose 'expected' or 'copairs'.")
    x = embeddings(x)
    xp, n = namespace(x), x.shape[0]
    if len(meta) != n:
        raise CamaeError(f"The metadata has {len(meta)} rows and the embeddings {n}; they must correspond.")
    same, diff = columns(meta, pos_sameby, "pos_sameby"), columns(meta, pos_diffby, "pos_diffby")
    neg_same, neg_diff = columns(meta, neg_sameby, "neg_sameby"), columns(meta, neg_diffby, "neg_diffby")
    if not same or not (neg_same or neg_diff):
        raise CamaeError("pos_sameby, and one of neg_sameby and neg_diffby, must name at least one column.")
    asked = np.ones(n, dtype=bool) if query is None else mask(query, n, "query")
    queries = find_queries(meta, same, diff, asked, multilabel, separator)
    _warn_of_unscored(meta, same, asked, queries.profile)
    negatives = Negatives(xp, meta, neg_same, neg_diff, multilabel, separator)
    ap, n_negatives = _scores(unit_rows(x), queries, negatives, ties, absolute)
    kept = n_negatives > 0
    if not kept.any():
        raise CamaeError("No profile has a negative pair; check neg_sameby and neg_diffby.")
    out = meta.iloc[queries.profile[kept]].copy()
    if multilabel in same:
        out[multilabel] = queries.label[kept]
    n_pos = (queries.positive[kept] >= 0).sum(axis=1)
    return out.assign(n_pos_pairs=n_pos, n_total_pairs=n_pos + n_negatives[kept], average_precision=ap[kept])


def mean_average_precision(
    ap: pd.DataFrame,
    sameby: Sequence[str] | str,
    null_size: int = 10_000,
    threshold: float = 0.05,
    seed: int = 0,
    rule: str = "mean_log_p",
) -> pd.DataFrame:
    """Groups of the profiles of `average_precision`, with p and q; see `retrieval` for the rules and columns."""
    by = columns(ap, sameby, "sameby")
    pair = list(zip(ap.n_pos_pairs, ap.n_total_pairs, strict=True))
    nulls = {
        key: null_average_precision(int(key[0]), int(key[1]), null_size, seed) for key in sorted(set(pair))
    }
    score = ap.average_precision.to_numpy()
    p = np.empty(len(ap))
    config = pd.factorize(pd.Series(pair))[0]
    for k in range(config.max() + 1):
        chosen = config == k
        p[chosen] = p_values(score[chosen], nulls[pair[int(chosen.argmax())]])
    table = ap[by].assign(average_precision=score, log_p=np.log10(p), place=np.arange(len(ap)))
    grouped = table.groupby(by, sort=True)
    out = grouped.agg(
        n_profiles=("place", "size"), average_precision=("average_precision", "mean")
    ).reset_index()
    if rule == "mean_log_p":
        out["p_value"] = 10 ** grouped.log_p.mean().to_numpy()
    else:
        means = [np.mean([nulls[pair[i]] for i in place], axis=0) for _, place in grouped.place]
        group = out.average_precision.to_numpy()
        out["p_value"] = [float(p_values(group[k], null)) for k, null in enumerate(means)]
    out["q_value"] = q_values(out.p_value.to_numpy())
    return out.assign(retrieved=out.q_value < threshold)


def _warn_of_unscored(meta: pd.DataFrame, same: list[str], asked: np.ndarray, scored: np.ndarray) -> None:
    left = asked.copy()
    left[scored] = False
    left &= meta[same].notna().all(axis=1).to_numpy()
    if left.any():
        row = int(left.argmax())
        warnings.warn(
            f"{left.sum()} of {asked.sum()} profiles have no positive pair, as a perturbation without replicates has "
            f"none, and are not scored (first: row {row}, {', '.join(map(str, meta[same].iloc[row]))}).",
            stacklevel=3,
        )


def _scores(
    unit: Any, queries: Queries, negatives: Negatives, ties: str, absolute: bool
) -> tuple[np.ndarray, np.ndarray]:
    """AP and number of negatives of each query, on the host in fp64."""
    xp, n = namespace(unit), unit.shape[0]
    step = max(min(BLOCK_VALUES // n, BLOCK_VALUES // queries.positive.shape[1] ** 2), 1)
    scores, counts = [], []
    harmonic = xp.asarray(np.concatenate([[0.0], np.cumsum(1 / np.arange(1, 2 * n + 1))]))
    for start in range(0, len(queries.profile), step):
        profile = xp.asarray(queries.profile[start : start + step])
        positive = xp.asarray(queries.positive[start : start + step])
        cosines = unit[profile] @ unit.T
        if absolute:
            cosines = xp.abs(cosines)
        if ties == "expected":
            grid = cosines.dtype.type(TIE_GRID[cosines.dtype.itemsize])
            cosines = xp.rint(cosines * grid)
        own = xp.take_along_axis(cosines, xp.maximum(positive, 0), axis=1)
        own = xp.where(positive >= 0, own, -xp.inf)
        negative = negatives.mask(profile)
        cosines[~negative] = -xp.inf
        above, level = _places(cosines, own, ties == "expected")
        counts.append(to_numpy(count_true(negative)))
        scores.append(
            to_numpy(
                _expected_ap(own, above, level, harmonic) if ties == "expected" else _first_ap(own, above)
            )
        )
    return np.concatenate(scores), np.concatenate(counts)


def count_true(flags: Any) -> Any:
    """Number of True along the last axis: eight at a time as bytes of a word, up to 255 words before a byte is full."""
    xp = namespace(flags)
    n = flags.shape[-1]
    if n % 8 or not flags.flags.c_contiguous:
        padded = xp.zeros((*flags.shape[:-1], -(-n // 8) * 8), dtype=bool)
        padded[..., :n] = flags
        flags = padded
    words = flags.view(np.uint64)
    total = xp.zeros(flags.shape[:-1], dtype=np.int64)
    for start in range(0, words.shape[-1], 255):
        packed = xp.ascontiguousarray(words[..., start : start + 255].sum(axis=-1))
        total += packed[..., None].view(np.uint8).sum(axis=-1, dtype=np.int64)
    return total


def _places(cosines: Any, own: Any, tied: bool) -> tuple[Any, Any]:
    """Of each positive: how many negatives lie above it, and (tied=True) how many lie at its value."""
    xp = namespace(cosines)
    above = xp.zeros(own.shape, dtype=np.int64)
    level = xp.zeros(own.shape, dtype=np.int64)
    if own.shape[1] <= FEW:
        for k in range(own.shape[1]):
            above[:, k] = count_true(cosines > own[:, k : k + 1])
            if tied:
                level[:, k] = count_true(cosines == own[:, k : k + 1])
        return above, level
    ordered = xp.sort(cosines, axis=1)
    n = cosines.shape[1]
    for i in range(own.shape[0]):
        high = xp.searchsorted(ordered[i], own[i], side="right")
        above[i] = n - high
        level[i] = high - xp.searchsorted(ordered[i], own[i], side="left")
    return above, level


def _first_ap(own: Any, above: Any) -> Any:
    """AP with tied positives ranked before tied negatives. own (Q, K) is -inf where there is no positive."""
    xp = namespace(own)
    order = xp.argsort(-own, axis=1)
    sorted_above = xp.take_along_axis(above, order, axis=1)
    place = xp.arange(1, own.shape[1] + 1, dtype=np.float64)[None]
    there = xp.take_along_axis(own, order, axis=1) > -xp.inf
    return xp.where(there, place / (sorted_above + place), 0).sum(axis=1) / there.sum(axis=1)


def _expected_ap(own: Any, above: Any, level: Any, harmonic: Any) -> Any:
    """Expected AP over random orders of tied items (McSherry and Najork 2008, equation 3, summed in closed form).

    A tie of n items, r of them positive, after N items of which R are positive, adds for each of its positives
    (1 / n) sum_i (R + 1 + (i - 1)(r - 1)/(n - 1)) / (N + i), i = 1 .. n; the sums are differences of harmonic numbers.
    """
    xp = namespace(own)
    there = own > -xp.inf
    ahead = (own[:, None, :] > own[:, :, None]).sum(axis=2)
    r = ((own[:, None, :] == own[:, :, None]) & there[:, None, :]).sum(axis=2)
    before, n = above + ahead, level + r
    n = xp.where(there, n, 1)
    span = xp.where(n > 1, harmonic[before + n] - harmonic[before], 1 / (before + 1.0))
    slope = xp.where(n > 1, (r - 1) / xp.maximum(n - 1, 1), 0.0)
    share = ((ahead + 1) * span + slope * (n - (before + 1) * span)) / n
    return xp.where(there, share, 0).sum(axis=1) / there.sum(axis=1)
