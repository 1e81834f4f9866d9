"""Null distributions of average precision, p values of queries, and Benjamini-Hochberg q values (host, fp64).

Three nulls, the first that fits: all rankings listed ("exact"), dynamic programming whose p is never below the exact
one ("grid"; both `camae.maps.exact_null`), random rankings ("permutation").

Random rankings are drawn in stages, each four times as many in all as the one before. What has been matched or
exceeded `ENOUGH` times stops; the rest go on until the smallest p is below level / (2 m), half of what
Benjamini-Hochberg asks of the first of m hypotheses. p = (b + 1) / (n + 1) for b of n at least as large. It is valid
in spite of the stopping: one that stops at stage n has p >= (ENOUGH + 1) / (n + 1), and for smaller a the event
p <= a is part of the event p_last <= a; for larger a everything that went on had p <= a at stage n already.
(Besag and Clifford 1991, "Sequential Monte Carlo p-values"; Phipson and Smyth 2010, "Permutation p-values should never
be zero".)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from camae.maps.exact_null import (
    Size,
    enumerated_null,
    grid_nulls,
    grid_p_values,
    is_enumerated,
    is_on_grid,
)

KEYS = 1 << 22  # random keys in memory at once
ENOUGH = 10  # draws that match or exceed a score before it stops: its p is then known to about a third
BEYOND = 2  # how far below level / m the smallest p of an adaptive null lies

# "auto": exact or grid where the size allows, else permutation until Benjamini-Hochberg can decide. "permutation":
# `null_size` random rankings whatever the size, as copairs has it.
Null: TypeAlias = Literal["auto", "permutation"]
NULLS: tuple[Null, ...] = ("auto", "permutation")


def null_average_precision(n_pos: int, n_total: int, size: int, seed: int, stage: int = 0) -> np.ndarray:
    """Null distribution of average precision: `size` random rankings of n_pos positives among n_total (unsorted).

    The stream depends on (seed, n_pos, n_total, stage) alone, so that results do not depend on what else is computed.
    """
    rng = np.random.default_rng([seed, n_pos, n_total] + [stage] * (stage > 0))
    step, out = max(KEYS // n_pos, 1), []
    for start in range(0, size, step):
        place = distinct_places(n_pos, n_total, min(step, size - start), rng)
        place.sort(axis=1)
        out.append((np.arange(1, n_pos + 1) / (place + 1)).mean(axis=1))
    return np.concatenate(out)


def distinct_places(n_pos: int, n_total: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Sampling without replacement: `size` draws of n_pos distinct places in 0 .. n_total - 1, (size, n_pos)."""
    # Comparing each draw with those before it against a random key for every place.
    if n_total > 4 * n_pos and n_pos**2 <= 16 * n_total:
        place = np.empty((size, n_pos), dtype=np.int64)
        for k, last in enumerate(range(n_total - n_pos, n_total)):  # Floyd's sampling, all draws at once
            draw = rng.integers(0, last + 1, size)
            taken = (place[:, :k] == draw[:, None]).any(axis=1)
            place[:, k] = np.where(taken, last, draw)
        return place
    step = max(KEYS // n_total, 1)
    parts = [
        np.argpartition(rng.random((min(step, size - i), n_total)), n_pos - 1, axis=1)[:, :n_pos]
        for i in range(0, size, step)
    ]
    return np.concatenate(parts)


def expected_average_precision(n_pos: np.ndarray, n_total: np.ndarray) -> np.ndarray:
    """Mean average precision of random rankings, (H + (K - 1) / (T - 1) (T - H)) / T with H the T-th harmonic number.

    Bestgen 2015, "Exact expected average precision of the random baseline for system evaluation".
    """
    sizes = np.asarray(n_total)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, int(sizes.max(initial=1)) + 1))])[sizes]
    mean: np.ndarray = (
        harmonic + (np.asarray(n_pos) - 1) / np.maximum(sizes - 1, 1) * (sizes - harmonic)
    ) / sizes
    return mean


def exceedances(score: np.ndarray, null: np.ndarray) -> npt.NDArray[np.int64]:
    """How many of `null` are at least each score; equal up to rounding (1e-12) counts as equal."""
    counted: npt.NDArray[np.int64] = len(null) - np.searchsorted(np.sort(null), score - 1e-12, side="left")
    return counted


def p_values(score: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Permutation p values (#{null >= score} + 1) / (len(null) + 1); equal up to rounding (1e-12) counts as equal."""
    return np.asarray((exceedances(score, null) + 1) / (len(null) + 1))


def draws_needed(hypotheses: int, level: float, at_least: int) -> int:
    """Draws after which the smallest p is below level / (BEYOND hypotheses), `at_least` at the fewest."""
    return max(at_least, math.ceil(BEYOND * hypotheses / level))


def sequential_p_values(
    count: Callable[[npt.NDArray[np.intp], int, int], npt.NDArray[np.int64]], n: int, first: int, last: int
) -> np.ndarray:
    """p values (n,) of n scores by permutation, each stopped where it is known well enough.

    count(scores, draws, stage) gives, for the indices `scores`, how many of that many new draws are at least as
    large. first, last: draws after the first stage and at most.
    """
    above, drawn = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    pending, stage, done, target = np.arange(n), 0, 0, min(first, last)
    while len(pending):
        above[pending] += count(pending, target - done, stage)
        drawn[pending] = target
        if target == last:
            break
        pending = pending[above[pending] < ENOUGH]
        stage, done, target = stage + 1, target, min(4 * target, last)
    return np.asarray((above + 1) / (drawn + 1))


def query_p_values(
    score: np.ndarray, sizes: list[Size], null_size: int, level: float, seed: int, null: Null
) -> tuple[np.ndarray, np.ndarray, npt.NDArray[np.str_]]:
    """p value, smallest attainable p value, and the null it comes from, of each query's average precision, (Q,) each.

    sizes: (positives, ranked profiles) of each query. null_size: random rankings, at the fewest under null="auto".
    level: false-discovery rate at which all queries together must be decidable. The smallest attainable p is that of
    a perfect ranking.
    """
    p, smallest = np.empty(len(score)), np.empty(len(score))
    source = np.full(len(score), "permutation", dtype="<U11")
    members: dict[Size, list[int]] = {}
    for place, size in enumerate(sizes):
        members.setdefault(size, []).append(place)
    grids = grid_nulls(size for size in members if null == "auto" and is_on_grid(*size))
    last = null_size if null == "permutation" else draws_needed(len(score), level, null_size)
    for size in sorted(members):
        at = np.array(members[size])
        if size in grids:
            p[at], source[at] = grid_p_values(score[at], grids[size], size[0]), "grid"
            smallest[at] = grid_p_values(np.ones(1), grids[size], size[0])
        elif null == "auto" and is_enumerated(*size):
            every = enumerated_null(*size)
            p[at], source[at], smallest[at] = (
                exceedances(score[at], every) / len(every),
                "exact",
                1 / len(every),
            )
        else:
            p[at], smallest[at] = _permuted(score[at], size, null_size, last, seed), 1 / (last + 1)
    return p, smallest, source


def _permuted(score: np.ndarray, size: Size, first: int, last: int, seed: int) -> np.ndarray:
    """p values by random rankings of one size."""

    def count(pending: npt.NDArray[np.intp], draws: int, stage: int) -> npt.NDArray[np.int64]:
        return exceedances(score[pending], null_average_precision(*size, draws, seed, stage))

    return sequential_p_values(count, len(score), first, last)


def q_values(p: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg adjusted p values, in the order given."""
    order = np.argsort(p)
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    q = np.empty(len(p))
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1)
    return q
