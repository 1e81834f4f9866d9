"""Exact null distribution of average precision: all rankings of K positives among T, by enumeration or on a grid.

Average precision is (1 / K) sum_k k / r_k, with the positives at the places r_1 < ... < r_K. Under the null hypothesis
(a query's positives are exchangeable with its negatives) each of the C(T, K) sets of places is equally likely.

Up to `ENUMERATED` sets they are listed. Beyond, dynamic programming over the places: with p(t, k) the distribution of
sum_j j / r_j for k positives among the first t places,

    p(t, k) = (1 - k / t) p(t - 1, k) + (k / t) [p(t - 1, k - 1) moved up by k / t],

because place t is one of them with probability k / t, and is then the k-th. Sums are kept on a grid of 1 / `GRID`,
every term rounded up. A p value read from it is therefore never below the exact one, and never above the exact p value
of an average precision that is 1 / GRID lower. Costs k GRID steps for every place and k <= K, so it is used up to
`CELLS` of these; larger queries need permutations (`camae.maps.nulls`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

ENUMERATED = 1 << 18  # sets of places that are listed
GRID = 8192  # steps between an average precision of 0 and 1
CELLS = 400_000_000  # steps of the dynamic programming for one size: half a second

Size = tuple[int, int]  # positives, ranked profiles in all


def is_enumerated(n_pos: int, n_total: int) -> bool:
    """Whether the null distribution of this size is a list of all rankings."""
    return math.comb(n_total, n_pos) <= ENUMERATED


def is_on_grid(n_pos: int, n_total: int) -> bool:
    """Whether the null distribution of this size comes from dynamic programming."""
    fits = n_pos * (n_pos + 1) // 2 * GRID * n_total <= CELLS
    return fits and not is_enumerated(n_pos, n_total)


@lru_cache(maxsize=64)
def enumerated_null(n_pos: int, n_total: int) -> np.ndarray:
    """Average precisions of all C(n_total, n_pos) rankings, sorted, (C,) fp64."""
    if n_pos == 1:
        return 1 / np.arange(n_total, 0, -1)
    parts: list[list[np.ndarray]] = [[np.zeros(1)], *([] for _ in range(n_pos))]
    for place in range(1, n_total + 1):
        # Fewer positives than `least` by this place cannot become n_pos by the last.
        least = max(n_pos - (n_total - place), 1)
        for k in range(min(n_pos, place), least - 1, -1):
            if parts[k - 1]:
                parts[k - 1] = [np.concatenate(parts[k - 1])]
                parts[k].append(parts[k - 1][0] + k / place)
    null: np.ndarray = np.sort(np.concatenate(parts[n_pos])) / n_pos
    null.flags.writeable = False
    return null


def grid_nulls(sizes: Iterable[Size]) -> dict[Size, np.ndarray]:
    """Of each size, the probability that the grid's sum is at least i, for i = 0 .. K GRID, (K GRID + 1,) fp64."""
    return dict(_grid_nulls(tuple(sorted(set(sizes)))))


@lru_cache(maxsize=8)
def _grid_nulls(sizes: tuple[Size, ...]) -> tuple[tuple[Size, np.ndarray], ...]:
    """`grid_nulls`; one run serves all sizes, as the first t places of a longer ranking."""
    if not sizes:
        return ()
    most = max(k for k, _ in sizes)
    last = [
        max(t for k, t in sizes if k >= row) for row in range(most + 1)
    ]  # place up to which a row is needed
    rows = [np.zeros(k * GRID + 1) for k in range(most + 1)]
    rows[0][0] = 1.0
    found = []
    wanted = set(sizes)
    for place in range(1, last[0] + 1):
        for k in range(min(most, place), 0, -1):
            if place > last[k]:
                continue
            shift, share = -(-k * GRID // place), k / place
            rows[k] *= 1 - share
            end = min(shift + len(rows[k - 1]), len(rows[k]))
            rows[k][shift:end] += share * rows[k - 1][: end - shift]
            if (k, place) in wanted:
                found.append(((k, place), np.cumsum(rows[k][::-1])[::-1].copy()))
    return tuple(found)


def grid_p_values(score: np.ndarray, tail: np.ndarray, n_pos: int) -> np.ndarray:
    """p values of average precisions: never below the exact ones. tail: of `grid_nulls` for n_pos positives."""
    # An equal average precision is at least this far up; 1e-6 of a step forgives the rounding of `score`.
    step = np.ceil(np.asarray(score) * n_pos * GRID - 1e-6).astype(np.int64)
    return np.minimum(tail[np.clip(step, 0, len(tail) - 1)], 1.0)
