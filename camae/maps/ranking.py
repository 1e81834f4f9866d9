"""Ranking of positives among negatives by similarity, and the average precision of that ranking.

No sort of the profiles is needed: the place of a positive is the number of negatives above it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from camae.maps.arrays import Array, namespace, to_numpy
from camae.maps.distances import Similarities
from camae.maps.profile_pairs import Negatives, Queries

BLOCK_VALUES = 1 << 23  # similarities held at once
FEW = 64  # positives up to which counting beats sorting the negatives


def rank_queries(
    alike: Similarities, queries: Queries, negatives: Negatives, ties: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Average precision and number of negatives of each query, on the host. alike: of all profiles."""
    xp, n = namespace(alike.x), alike.x.shape[0]
    step = max(min(BLOCK_VALUES // n, BLOCK_VALUES // queries.positive.shape[1] ** 2), 1)
    scores, counts = [], []
    harmonic = xp.asarray(np.concatenate([[0.0], np.cumsum(1 / np.arange(1, 2 * n + 1))]))
    for start in range(0, len(queries.profile), step):
        profile = xp.asarray(queries.profile[start : start + step])
        positive = xp.asarray(queries.positive[start : start + step])
        similar = alike.block(profile)
        if ties == "expected":
            similar *= similar.dtype.type(alike.grid)
            similar = xp.rint(similar, out=similar)
        own = xp.take_along_axis(similar, xp.maximum(positive, 0), axis=1)
        own = xp.where(positive >= 0, own, -xp.inf)
        negative = negatives.mask(profile)
        counts.append(to_numpy(count_true(negative)))
        _leave_out(similar, ~negative, similar.size - int(counts[-1].sum()))
        above, level = _places(similar, own, ties == "expected")
        if ties == "expected":
            scores.append(to_numpy(_expected_precision(own, above, level, harmonic)))
        else:
            scores.append(to_numpy(_first_precision(own, above)))
    return np.concatenate(scores), np.concatenate(counts)


def _leave_out(similar: Array, barred: Array, count: int) -> None:
    """-inf at the `count` flagged places of similar (rows, n), in place."""
    if namespace(similar) is np and 8 * count < similar.size:
        similar.reshape(-1)[np.flatnonzero(barred)] = -np.inf  # NumPy takes few places faster than a mask
    else:
        similar[barred] = -np.inf


def count_true(flags: Array) -> Array:
    """Number of True in each row of a boolean table (rows, n)."""
    xp = namespace(flags)
    if xp is not np:
        return xp.count_nonzero(flags, axis=1)
    # Eight booleans a word; up to 255 words are added before a byte could overflow. NumPy's own count along an axis is
    # many times slower.
    whole = flags.shape[1] // 8 * 8
    count = flags[:, whole:].sum(axis=1, dtype=np.int64)
    words = flags[:, :whole].view(np.uint64)
    for start in range(0, words.shape[1], 255):
        lanes = words[:, start : start + 255].sum(axis=1)
        count += lanes.view(np.uint8).reshape(-1, 8).sum(axis=1, dtype=np.int64)
    return count


def _places(similar: Array, own: Array, tied: bool) -> tuple[Array, Array]:
    """Of each positive: how many negatives lie above it, and (tied=True) how many lie at its value."""
    xp = namespace(similar)
    above = xp.zeros(own.shape, dtype=np.int64)
    level = xp.zeros(own.shape, dtype=np.int64)
    if own.shape[1] <= FEW:
        for k in range(own.shape[1]):
            above[:, k] = count_true(similar > own[:, k : k + 1])
            if tied:
                level[:, k] = count_true(similar == own[:, k : k + 1])
        return above, level
    ordered = xp.sort(similar, axis=1)
    n = similar.shape[1]
    for i in range(own.shape[0]):
        high = xp.searchsorted(ordered[i], own[i], side="right")
        above[i] = n - high
        level[i] = high - xp.searchsorted(ordered[i], own[i], side="left")
    return above, level


def _first_precision(own: Array, above: Array) -> Array:
    """Average precision with tied positives before tied negatives. own (Q, K) is -inf where there is no positive."""
    xp = namespace(own)
    order = xp.argsort(-own, axis=1)
    sorted_above = xp.take_along_axis(above, order, axis=1)
    place = xp.arange(1, own.shape[1] + 1, dtype=np.float64)[None]
    there = xp.take_along_axis(own, order, axis=1) > -xp.inf
    return xp.where(there, place / (sorted_above + place), 0).sum(axis=1) / there.sum(axis=1)


def _expected_precision(own: Array, above: Array, level: Array, harmonic: Array) -> Array:
    """Expected average precision over random orders of tied items, in closed form.

    A tie of n items, r of them positive, after N items of which R are positive, adds for each of its positives
    (1 / n) sum_i (R + 1 + (i - 1)(r - 1)/(n - 1)) / (N + i), i = 1 .. n; the sums are differences of harmonic
    numbers (McSherry and Najork 2008, equation 3).
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
