"""Exact order statistics of all pairwise cosines, without the n x n matrix. NumPy or CuPy, no torch.

Input: unit rows x_ND (fp32 or fp64), so that x_i . x_j is a cosine. The n (n - 1) / 2 unordered pairs are visited
block by block. For a few ranks one pass does: the pairs of a sample of rows say in which window of values a rank
should lie; the pass counts what is below the window and collects what is in it. Where the window missed, or for many
ranks, there are two passes: the first counts the pairs in bins, the second collects the values of the bins that
hold a wanted rank, and sorts those. Memory is one block and what is collected, whatever n is.

Floor: 2 n^2 D / 2 FLOP a pass and one read of each block from cache: 19 TFLOP for n = 136,000, D = 1024.
All passes form the same blocks by the same call, so a pair has the same bits in each, and the cosines of chosen
pairs are taken from these blocks as well: ties are ties.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from camae.kernels.arrays.namespaces import namespace, to_numpy

COLLECT = 1 << 26  # values gathered in one pass at most; fuller bins are divided again
FEW_RANKS = 8  # as many are looked for in windows: each costs three comparisons of every value
SAMPLED_ROWS = (
    512,
    8192,
)  # at least, so that windows are worth their sample; at most, so that it is soon sorted
MANY_PAIRS = 1 << 28  # beyond this many pairs the bins are finer, so that the second pass gathers less


def default_block(x_ND: Any) -> int:
    """Rows of a block: 4 MB of fp32 cosines stay in a CPU's cache, 256 MB keep a GPU busy."""
    return 1024 if namespace(x_ND) is np else 8192


def pair_values(x_ND: Any, block: int) -> Iterator[Any]:
    """The cosines of all unordered pairs (i < j), flat, block by block."""
    xp = namespace(x_ND)
    for i in range(0, x_ND.shape[0], block):
        for j in range(i, x_ND.shape[0], block):
            cosines = x_ND[i : i + block] @ x_ND[j : j + block].T
            yield cosines[~xp.tri(cosines.shape[0], dtype=bool)] if i == j else cosines.reshape(-1)


def cosines_of_pairs(
    x_ND: Any, left_P: np.ndarray, right_P: np.ndarray, block: int | None = None
) -> np.ndarray:
    """Cosines of the pairs (left_P, right_P), on the host, bit for bit those that `order_statistics` ranks.

    left_P and right_P are host indices with left != right; the order inside a pair does not matter.
    """
    xp, block = namespace(x_ND), block or default_block(x_ND)
    low_P, high_P = np.minimum(left_P, right_P), np.maximum(left_P, right_P)
    out_P = np.empty(len(low_P), dtype=x_ND.dtype)
    key_P = (low_P // block) * (1 << 32) + high_P // block
    order_P = np.argsort(key_P, kind="stable")
    for chosen in np.split(order_P, np.flatnonzero(np.diff(key_P[order_P])) + 1):
        if len(chosen) == 0:
            continue
        i, j = (int(v[chosen[0]]) // block * block for v in (low_P, high_P))
        cosines = x_ND[i : i + block] @ x_ND[j : j + block].T
        found = cosines[xp.asarray(low_P[chosen] - i), xp.asarray(high_P[chosen] - j)]
        out_P[chosen] = to_numpy(found)
    return out_P


def order_statistics(x_ND: Any, ranks: Sequence[int], block: int | None = None) -> np.ndarray:
    """The values at 0-based `ranks` of the sorted cosines of all n (n - 1) / 2 unordered pairs.

    x_ND: unit (or zero) rows. block: rows of a block (`default_block`). Returns a host array in x's dtype, one
    value for each rank. Raises ValueError for a rank outside 0 .. n (n - 1) / 2 - 1.
    """
    n = x_ND.shape[0]
    total = n * (n - 1) // 2
    wanted = np.unique(np.asarray(ranks, dtype=np.int64))
    if len(wanted) and (wanted[0] < 0 or wanted[-1] >= total):
        raise ValueError(f"ranks must lie in 0..{total - 1}, got {wanted[0]}..{wanted[-1]}")
    pairs = Pairs(x_ND, block or default_block(x_ND), 1 << (16 if total < MANY_PAIRS else 20))
    found = pairs.in_windows(wanted) if len(wanted) <= FEW_RANKS else {}
    left = np.array([rank for rank in wanted.tolist() if rank not in found], dtype=np.int64)
    if len(left):
        found |= pairs.select(left, ())
    return np.array([found[int(rank)] for rank in ranks], dtype=x_ND.dtype)


@dataclass(frozen=True)
class Bins:
    """`count` bins from `low` upwards. The bin rises with the value: both operations are monotone when rounded."""

    low: Any
    scale: Any
    count: int

    def of(self, values: Any) -> Any:
        scaled = values - self.low
        scaled *= self.scale
        namespace(values).clip(scaled, 0, self.count - 1, out=scaled)
        return scaled.astype(np.int64)


Levels = tuple[tuple[Bins, int], ...]  # the values that lie in the given bin of every level


@dataclass(frozen=True)
class Pairs:
    """All pairs of x_ND, met in blocks."""

    x_ND: Any
    block: int
    n_bins: int

    def windows(self, wanted: np.ndarray) -> list[tuple[Any, Any]]:
        """Between which values each rank should lie, from the pairs of evenly spaced rows; none for few rows.

        The share of pairs under a value, seen in S rows, has a standard error of 2 s / sqrt(S), s the spread of
        rows' own shares (a U-statistic, Hoeffding 1948); s = 0.04 is generous, and a miss only costs time.
        """
        n = self.x_ND.shape[0]
        step = max(8, -(-n // SAMPLED_ROWS[1]))
        sampled = n // step
        if sampled < SAMPLED_ROWS[0]:
            return []
        xp = namespace(self.x_ND)
        values = xp.concatenate(list(pair_values(self.x_ND[::step], self.block)))
        ordered = to_numpy(xp.sort(values))
        margin = 4 * 0.08 / sampled**0.5
        share = wanted / (n * (n - 1) // 2)
        low = np.floor((share - margin) * len(ordered)).astype(np.int64)
        high = np.ceil((share + margin) * len(ordered)).astype(np.int64)
        inner = len(ordered) - 1
        return [
            (ordered[a] if a >= 0 else -np.inf, ordered[b] if b <= inner else np.inf)
            for a, b in zip(low.tolist(), high.tolist(), strict=True)
        ]

    def in_windows(self, wanted: np.ndarray) -> dict[int, float]:
        """The values of those `wanted` ranks that their windows hold, in one pass."""
        windows = self.windows(wanted)
        if not windows:
            return {}
        xp, dtype = namespace(self.x_ND), self.x_ND.dtype.type
        windows = [(dtype(low), dtype(high)) for low, high in windows]
        below, inside = [0] * len(windows), [[] for _ in windows]  # type: list[Any], list[list[Any]]
        gathered = 0
        for values in pair_values(self.x_ND, self.block):
            for k, (low, high) in enumerate(windows):
                under = values < low
                below[k] += xp.count_nonzero(under)
                inside[k].append(values[under != (values <= high)])
                gathered += inside[k][-1].size
            if gathered > COLLECT:  # a tie of many pairs: bins keep to their memory
                return {}
        found = {}
        for rank, count, parts in zip(wanted.tolist(), below, inside, strict=True):
            collected = xp.concatenate(parts)
            place = rank - int(count)
            if 0 <= place < collected.size:
                found[rank] = float(xp.partition(collected, place)[place])
        return found

    def members(self, levels: Levels) -> Iterator[Any]:
        """The pair values that lie in the given bin of every level."""
        for values in pair_values(self.x_ND, self.block):
            for bins, chosen in levels:
                values = values[bins.of(values) == chosen]
            if values.size:
                yield values

    def bins(self, levels: Levels) -> Bins | float:
        """Bins over the members' extent, or their value where they are all the same."""
        low, high = -1.0, 1.0
        if levels:
            parts = [(float(v.min()), float(v.max())) for v in self.members(levels)]
            low, high = min(low for low, _ in parts), max(high for _, high in parts)
        if low == high:
            return low
        dtype = self.x_ND.dtype.type
        return Bins(dtype(low), dtype(min(self.n_bins / (high - low), np.finfo(dtype).max)), self.n_bins)

    def select(self, wanted: np.ndarray, levels: Levels) -> dict[int, float]:
        """Sorted `wanted` ranks among the members of `levels`: count in bins, then sort the bins that are hit."""
        bins = self.bins(levels)
        if isinstance(bins, float):
            return {int(rank): bins for rank in wanted}
        counts = namespace(self.x_ND).zeros(self.n_bins, dtype=np.int64)
        for values in self.members(levels):
            counts += namespace(values).bincount(bins.of(values), minlength=self.n_bins)
        counts = to_numpy(counts)
        start = np.cumsum(counts) - counts
        # Of bins that start equal the last is hit: the only one that is not empty.
        hit = np.searchsorted(start, wanted, side="right") - 1
        unique = np.unique(hit)
        full = counts[unique] > COLLECT // max(len(unique), 1)
        found: dict[int, float] = {}
        for one in unique[full].tolist():
            inner = self.select(wanted[hit == one] - start[one], (*levels, (bins, one)))
            found |= {rank + int(start[one]): value for rank, value in inner.items()}
        ordered = self.collect(bins, unique[~full], levels)
        offset = np.zeros(self.n_bins, dtype=np.int64)
        offset[unique[~full]] = np.cumsum(counts[unique[~full]]) - counts[unique[~full]]
        for rank, one in zip(wanted.tolist(), hit.tolist(), strict=True):
            if rank not in found:
                found[rank] = float(ordered[offset[one] + rank - start[one]])
        return found

    def collect(self, bins: Bins, chosen: np.ndarray, levels: Levels) -> np.ndarray:
        """The sorted members of `levels` that fall in the `chosen` bins, on the host."""
        xp = namespace(self.x_ND)
        if len(chosen) == 0:
            return np.empty(0, dtype=self.x_ND.dtype)
        table = np.zeros(self.n_bins, dtype=bool)
        table[chosen] = True
        table = xp.asarray(table)

        def wanted(values: Any) -> Any:
            index = bins.of(values)
            # Bins are in range as they are; NumPy's check of it would take as long as the lookup.
            return table.take(index, mode="clip") if xp is np else table[index]

        parts = [values[wanted(values)] for values in self.members(levels)]
        return to_numpy(xp.sort(xp.concatenate(parts)))
