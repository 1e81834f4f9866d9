"""Null distributions of average precision, permutation p values and Benjamini-Hochberg q values (host, fp64)."""

from __future__ import annotations

import numpy as np

FLOYD_LIMIT = 256  # positives up to which sampling without replacement goes draw by draw
KEYS = 1 << 22  # random keys in memory at once


def null_average_precision(n_pos: int, n_total: int, size: int, seed: int) -> np.ndarray:
    """Null distribution of average precision: `size` random rankings of n_pos positives among n_total (unsorted).

    The stream depends on (seed, n_pos, n_total) alone, so that results do not depend on what else is computed.
    """
    rng = np.random.default_rng([seed, n_pos, n_total])
    place = _distinct_places(n_pos, n_total, size, rng)
    place.sort(axis=1)
    return (np.arange(1, n_pos + 1) / (place + 1)).mean(axis=1)


def _distinct_places(n_pos: int, n_total: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Sampling without replacement: `size` draws of n_pos distinct places in 0 .. n_total - 1, (size, n_pos)."""
    if n_pos <= FLOYD_LIMIT and n_total > 4 * n_pos:
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


def p_values(score: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Permutation p values (#{null >= score} + 1) / (len(null) + 1); equal up to rounding (1e-12) counts as equal."""
    above = len(null) - np.searchsorted(np.sort(null), score - 1e-12, side="left")
    return (above + 1) / (len(null) + 1)


def q_values(p: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg adjusted p values, in the order given."""
    order = np.argsort(p)
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    q = np.empty(len(p))
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1)
    return q
