"""Recall of known relationships (paper, section 5.1, Tables 2 and 3, Figure 5 right).

The null distribution is the set of cosines of all unordered pairs of the map, known pairs included. A known pair
counts as found when its cosine lies in the left tail (the share of pairs at or below it is at most `left`) or in the
right tail (the share of pairs strictly below it is at least `right`). Random vectors score left + 1 - right.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from camae.errors import CamaeError
from camae.kernels.arrays.cosine_tails import order_statistics_and_pairs
from camae.maps.arrays import Array, Labels, takes_tensors, unit_rows
from camae.maps.inputs import embeddings, is_number, named_rows
from camae.maps.intervals import share_interval, spread
from camae.maps.pairs import KnownPairs, PairSources, match_sources
from camae.typed_settings import Limits

Tails: TypeAlias = tuple[float | None, float | None]
COLUMNS = ("recall", "n_pairs", "n_found", "left", "right", "se", "low", "high")


@takes_tensors
def recall(
    v: Array,
    names: Labels,
    pairs: PairSources,
    tails: Tails = (0.05, 0.95),
    bootstrap: int = 0,
    seed: int = 0,
    interval: bool = False,
) -> pd.DataFrame:
    """Recall of known relationships: the share of known pairs among the most extreme cosines of the map.

    Related genes should look alike (right tail) or opposite (left tail) when knocked out; both count.

    Parameters
    ----------
    v : (n, d) array
        One row for each perturbation, origin at the negative controls (nothing is re-centered); NumPy, CuPy or torch.
    names : n labels
        The perturbations, distinct.
    pairs : sequence of 2-tuples of names, (p, 2) array, DataFrame, or dict of these by source
        Known related pairs. Names match exactly; self pairs and repeats are dropped; pairs with a name that the map
        lacks are left out with a warning.
    tails : (left, right)
        Ends of the tails as shares of all unordered pairs; None switches a side off.
    bootstrap, seed : int
        Of versions that resampled; any number above 0 is ``interval=True``. Nothing is drawn.
    interval : bool
        Whether the standard error and the 95 % interval are computed; else they are NaN.

    Returns
    -------
    DataFrame
        One row for each source (index: the source; "pairs" without a dict) with the columns recall, n_pairs,
        n_found, left, right (the tails asked for), se, low and high (the ends of the 95 % interval).
        ``attrs["n_unknown"]`` counts the pairs left out, by source.

    Raises
    ------
    CamaeError
        For duplicated names, tails outside 0..1, a negative ``bootstrap``, or when no pair is in the map.

    Notes
    -----
    With N = n (n - 1) / 2 pairs, a pair of cosine s is found when #{null <= s} / N <= left or
    #{null < s} / N >= right; by chance that happens with probability left + 1 - right = 0.1. The threshold is exact;
    no n x n matrix is formed. se estimates the standard deviation over screens of the same kind: the cluster-robust
    one of pairs, whose clusters are groups of perturbations with mostly the same known partners. The interval is
    Wilson's with the effective number of trials and Student's t for the number of groups (`camae.maps.intervals`).

    References
    ----------
    Kraus et al. (CVPR 2024), section 5.1, Tables 2 and 3; Celik et al. 2024 (EFAAR); Aronow et al. 2015,
    "Cluster-Robust Variance Estimation for Dyadic Data".
    """
    if not is_number(bootstrap, Limits(low=0), whole=True):
        raise CamaeError(f"bootstrap is {bootstrap}; leave it out, or give interval=True for the interval")
    v, name_N = named_rows(v, names)
    known = match_sources(name_N, pairs)
    table = []
    for k, (hits,) in zip(known.values(), _found_by_source(v, known, [tails]), strict=True):
        about = (float("nan"),) * 3
        if interval or bootstrap:
            by = spread(k.index, hits[None].astype(float))
            about = (by.errors[0], *share_interval(hits.mean(), by.covariance[0, 0], by))
        table.append((hits.mean(), len(hits), int(hits.sum()), *tails, *about))
    out = pd.DataFrame(table, columns=list(COLUMNS), index=list(known))
    out.attrs["n_unknown"] = {source: k.unknown for source, k in known.items()}
    return out


@takes_tensors
def recall_curve(
    v: Array, names: Labels, pairs: PairSources, percentiles: Sequence[float] | None = None
) -> pd.DataFrame:
    """Recall of known relationships against the share of pairs that are called, all in one pass over the pairs.

    Parameters
    ----------
    v, names, pairs
        As in `recall`.
    percentiles : sequence of float, optional
        Shares p in (0, 1) of all pairs, p / 2 in each tail; 0.01, 0.02, ... 0.99 by default.

    Returns
    -------
    DataFrame
        Tidy: source, percentile, recall, n_pairs, n_found. Random vectors give recall = percentile.

    Raises
    ------
    CamaeError
        As `recall`.

    References
    ----------
    Kraus et al. (CVPR 2024), Figure 5, right.
    """
    shares = np.linspace(0.01, 0.99, 99) if percentiles is None else np.asarray(percentiles)
    if shares.ndim != 1 or not all(is_number(share, Limits(above=0, below=1)) for share in shares.tolist()):
        raise CamaeError(
            f"percentiles must be a sequence of shares above 0 and below 1, got {percentiles!r:.60}"
        )
    v, name_N = named_rows(v, names)
    known = match_sources(name_N, pairs)
    parts = _found_by_source(v, known, [(share / 2, 1 - share / 2) for share in shares.tolist()])
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "source": source,
                    "percentile": shares,
                    "recall": part.mean(axis=1),
                    "n_pairs": part.shape[1],
                    "n_found": part.sum(axis=1),
                }
            )
            for source, part in zip(known, parts, strict=True)
        ],
        ignore_index=True,
    )


def _found_by_source(
    v: Array, known: dict[str, KnownPairs], tails: Sequence[Tails]
) -> list[npt.NDArray[np.bool_]]:
    """`found_pairs` for each source, from one pass over the pairs of the map."""
    sizes = [len(k.index) for k in known.values()]
    found = found_pairs(v, np.concatenate([k.index for k in known.values()]), tails)
    return np.split(found, np.cumsum(sizes)[:-1], axis=1)


def found_pairs(v: Array, index: np.ndarray, tails: Sequence[Tails]) -> npt.NDArray[np.bool_]:
    """Which pairs are found, booleans (tails, pairs). v: (n, d); index: (pairs, 2) rows. Exact, no n x n matrix."""
    unit = unit_rows(embeddings(v, "v"))
    total = unit.shape[0] * (unit.shape[0] - 1) // 2
    bounds = [_tail_ranks(pair, total) for pair in tails]
    ranks = sorted({rank for pair in bounds for rank in pair if rank is not None})
    values, cosines = order_statistics_and_pairs(unit, ranks, index[:, 0], index[:, 1])
    value = dict(zip(ranks, values, strict=True))
    found = np.zeros((len(bounds), len(index)), dtype=bool)
    for k, (left, right) in enumerate(bounds):
        if left is not None:
            found[k] |= cosines < value[left]
        if right is not None:
            found[k] |= cosines > value[right]
    return found


def _tail_ranks(tails: Tails, total: int) -> tuple[int | None, int | None]:
    """Ranks in the sorted null whose values bound the tails: found is s < null[low] or s > null[high].

    #{null <= s} / total <= left means that s < null[low], low the largest count with low / total <= left.
    #{null < s} / total >= right means that s > null[m - 1], m the smallest count with m / total >= right.
    """
    if (
        not isinstance(tails, Sequence | np.ndarray | pd.Series)
        or len(tails) != 2
        or not all(tail is None or isinstance(tail, float | int | np.number) for tail in tails)
    ):
        raise CamaeError(f"tails must be two numbers or None, got {tails!r}; (0.05, 0.95) is the paper's")
    left, right = tails
    for tail in tails:
        if tail is not None and not 0 <= tail <= 1:
            raise CamaeError(f"tails must lie between 0 and 1, got {tails}; (0.05, 0.95) is the paper's")
    if left is not None and right is not None and left > right:
        raise CamaeError(
            f"tails {tails} overlap, so that every pair is found; give the lower share first, as (0.05, 0.95)"
        )
    # Bisection of the quotients themselves, so that rounding falls as it does for a pair's own rank / total.
    counts = range(total + 1)
    low = None if left is None else bisect.bisect_right(counts, left, key=lambda count: count / total) - 1
    high = None if right is None else bisect.bisect_left(counts, right, key=lambda count: count / total) - 1
    if (low is not None and low >= total) or (high is not None and high < 0):
        raise CamaeError(
            f"tails {tails} take in every pair; choose a left tail under 1 and a right tail above 0"
        )
    return low, high
