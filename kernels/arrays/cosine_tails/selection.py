"""Rank selection among the cosines of all pairs: windows from a sample of rows, then counting in bins.

For a few ranks one pass does: the pairs of a sample of rows say in which window of values a rank should lie; the pass
counts what is below the window and collects what is in it. Where the window missed, or for many ranks, there are two
passes: the first counts the pairs in bins, the second collects the values of the bins that hold a wanted rank, and
sorts those. Memory is one block and what is collected, whatever n is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from camae.kernels.arrays.cosine_tails.blocks import Array, ChosenPairs, Ints, pair_values
from camae.kernels.arrays.cosine_tails.device_windows import device_windows, has_kernels
from camae.kernels.arrays.namespaces import namespace, to_numpy

COLLECT = 1 << 26  # values gathered in one pass at most; fuller bins are divided again
# At least, so that windows are worth their sample; at most, so that it is soon sorted. One row in 4 to 8 is drawn: the
# pairs of a sample are then a sixteenth of all, or fewer.
SAMPLED_ROWS = (512, 8192)
SAMPLED_SHARE = (4, 8)


@dataclass(frozen=True)
class Bins:
    """`count` bins from `low` upwards. The bin rises with the value: both operations are monotone when rounded."""

    low: np.floating
    scale: np.floating
    count: int

    def of(self, values: Array) -> Ints:
        """The bin of every value."""
        scaled = values - self.low
        scaled *= self.scale
        namespace(values).clip(scaled, 0, self.count - 1, out=scaled)
        return scaled.astype(np.int64)


Levels = tuple[tuple[Bins, int], ...]  # the values that lie in the given bin of every level


@dataclass(frozen=True)
class PairSelection:
    """Selection of ranks among all pairs of x_ND, in passes over blocks of `block` rows.

    chosen: pairs whose cosines the first pass takes along.
    """

    x_ND: Array
    block: int
    n_bins: int
    chosen: ChosenPairs | None = None

    def _values(self) -> Iterator[Array]:
        return pair_values(self.x_ND, self.block, None if self.chosen is None else self.chosen.take)

    def windows(self, wanted: Ints) -> list[tuple[float, float]]:
        """Between which values each rank should lie, from the pairs of evenly spaced rows; none for few rows.

        The share of pairs under a value, seen in S rows, has a standard error of 2 s / sqrt(S), s the spread of
        rows' own shares (a U-statistic, Hoeffding 1948); s = 0.04 is generous, and a miss only costs time.
        """
        n = self.x_ND.shape[0]
        step = max(min(SAMPLED_SHARE[1], n // SAMPLED_ROWS[0]), -(-n // SAMPLED_ROWS[1]))
        if step < SAMPLED_SHARE[0]:
            return []
        sampled = n // step
        xp = namespace(self.x_ND)
        values = xp.concatenate(list(pair_values(self.x_ND[::step], self.block)))
        ordered = to_numpy(xp.sort(values))
        margin = 4 * 0.08 / sampled**0.5
        share = wanted / (n * (n - 1) // 2)
        low = np.floor((share - margin) * len(ordered)).astype(np.int64)
        high = np.ceil((share + margin) * len(ordered)).astype(np.int64)
        inner = len(ordered) - 1
        return [
            (float(ordered[a]) if a >= 0 else -np.inf, float(ordered[b]) if b <= inner else np.inf)
            for a, b in zip(low.tolist(), high.tolist(), strict=True)
        ]

    def in_windows(self, wanted: Ints) -> dict[int, float]:
        """The values of those `wanted` ranks that their windows hold, in one pass."""
        windows = self.windows(wanted)
        if not windows:
            return {}
        xp, dtype = namespace(self.x_ND), self.x_ND.dtype.type
        limits = [(dtype(low), dtype(high)) for low, high in windows]
        counted = device_windows(self.x_ND, self.block, limits) if has_kernels(xp) else self._windows(limits)
        if counted is None:  # a tie of many pairs: bins need less memory
            return {}
        found = {}
        for rank, (count, collected) in zip(wanted.tolist(), counted, strict=True):
            place = rank - count
            if 0 <= place < collected.size:
                found[rank] = float(xp.partition(collected, place)[place])
        return found

    def _windows(self, limits: Sequence[tuple[np.floating, np.floating]]) -> list[tuple[int, Array]] | None:
        """Pairs below each window and the values inside it; None where those are more than `COLLECT`."""
        xp = namespace(self.x_ND)
        below, gathered = [0] * len(limits), 0
        inside: list[list[Array]] = [[] for _ in limits]
        for values in self._values():
            for k, (low, high) in enumerate(limits):
                under = values < low
                below[k] += xp.count_nonzero(under)
                inside[k].append(values[~under & (values <= high)])
                gathered += inside[k][-1].size
            if gathered > COLLECT:
                return None
        return [(int(count), xp.concatenate(parts)) for count, parts in zip(below, inside, strict=True)]

    def members(self, levels: Levels) -> Iterator[Array]:
        """The pair values that lie in the given bin of every level."""
        for values in self._values():
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
        scale = min(self.n_bins / (high - low), float(np.finfo(dtype).max))
        return Bins(dtype(low), dtype(scale), self.n_bins)

    def select(self, wanted: Ints, levels: Levels) -> dict[int, float]:
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

    def collect(self, bins: Bins, chosen: Ints, levels: Levels) -> Array:
        """The sorted members of `levels` that fall in the `chosen` bins, on the host."""
        xp = namespace(self.x_ND)
        if len(chosen) == 0:
            return np.empty(0, dtype=self.x_ND.dtype)
        table = np.zeros(self.n_bins, dtype=bool)
        table[chosen] = True
        table = xp.asarray(table)

        def wanted(values: Array) -> npt.NDArray[np.bool_]:
            index = bins.of(values)
            # Bins are in range as they are; NumPy's check of it would take as long as the lookup.
            return table.take(index, mode="clip") if xp is np else table[index]

        parts = [values[wanted(values)] for values in self.members(levels)]
        return to_numpy(xp.sort(xp.concatenate(parts)))
