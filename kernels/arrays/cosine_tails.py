"""Exact order statistics of all pairwise cosines, without the n x n matrix. NumPy or CuPy, no torch.

Input: unit rows x_ND (fp32 or fp64), so that x_i . x_j is a cosine. The n (n - 1) / 2 unordered pairs are visited
block by block, twice: the first pass counts them in bins, the second collects the values of the few bins that
hold a wanted rank, and sorts those. Memory is one block and the collected bins, whatever n is.

Floor: 2 n^2 D / 2 FLOP a pass and one read of each block from cache: 19 TFLOP for n = 136,000, D = 1024.
Both passes form the same blocks by the same call, so a pair has the same bits in both, and the cosines of chosen
pairs are taken from these blocks as well: ties are ties.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from camae.kernels.arrays.namespaces import namespace, to_numpy

BINS = 1 << 16
COLLECT = 1 << 24  # values gathered in one pass at most; a fuller bin is divided again


def blocks(x_ND: Any, block: int) -> Iterator[tuple[int, int, Any]]:
    """(first row, first column, cosines) of the upper triangle's blocks, diagonal blocks whole."""
    for i in range(0, x_ND.shape[0], block):
        for j in range(i, x_ND.shape[0], block):
            yield i, j, x_ND[i : i + block] @ x_ND[j : j + block].T


def pair_values(x_ND: Any, block: int) -> Iterator[Any]:
    """The cosines of all unordered pairs (i < j), flat, block by block."""
    xp = namespace(x_ND)
    for i, j, cosines in blocks(x_ND, block):
        if i == j:
            yield cosines[xp.triu_indices(cosines.shape[0], 1)]
        else:
            yield cosines.reshape(-1)


def cosines_of_pairs(x_ND: Any, left_P: np.ndarray, right_P: np.ndarray, block: int = 1024) -> np.ndarray:
    """Cosines of the pairs (left_P, right_P), on the host, bit for bit those that `order_statistics` ranks.

    left_P and right_P are host indices with left != right; the order inside a pair does not matter.
    """
    xp = namespace(x_ND)
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


def order_statistics(x_ND: Any, ranks: Sequence[int], block: int = 1024) -> np.ndarray:
    """The values at 0-based `ranks` of the sorted cosines of all n (n - 1) / 2 unordered pairs.

    x_ND: unit (or zero) rows. Returns a host array in x's dtype, one value for each rank.
    Raises ValueError for a rank outside 0 .. n (n - 1) / 2 - 1.
    """
    n = x_ND.shape[0]
    total = n * (n - 1) // 2
    wanted = np.unique(np.asarray(ranks, dtype=np.int64))
    if len(wanted) and (wanted[0] < 0 or wanted[-1] >= total):
        raise ValueError(f"ranks must lie in 0..{total - 1}, got {wanted[0]}..{wanted[-1]}")
    found = _select(x_ND, wanted, (), block)
    return np.array([found[int(rank)] for rank in ranks], dtype=x_ND.dtype)


Level = tuple[Any, Any, int]  # low, scale, bin: the values v with bin(v) == bin


def _bin(values: Any, low: Any, scale: Any) -> Any:
    """Bin numbers 0 .. BINS - 1, rising with the value (subtraction and product are monotone in floating point)."""
    xp = namespace(values)
    scaled = values - low
    scaled *= scale
    xp.clip(scaled, 0, BINS - 1, out=scaled)
    return scaled.astype(np.int64)


def _members(x_ND: Any, levels: tuple[Level, ...], block: int) -> Iterator[Any]:
    """The pair values that lie in the given bin of every level."""
    for values in pair_values(x_ND, block):
        for low, scale, bin_ in levels:
            values = values[_bin(values, low, scale) == bin_]
        if values.size:
            yield values


def _extent(x_ND: Any, levels: tuple[Level, ...], block: int) -> tuple[float, float]:
    if not levels:
        return -1.0, 1.0
    parts = [(float(v.min()), float(v.max())) for v in _members(x_ND, levels, block)]
    return min(low for low, _ in parts), max(high for _, high in parts)


def _select(x_ND: Any, wanted: np.ndarray, levels: tuple[Level, ...], block: int) -> dict[int, float]:
    """Sorted `wanted` ranks among the members of `levels`: count in bins, then sort the bins that are hit."""
    xp, dtype = namespace(x_ND), x_ND.dtype.type
    low, high = _extent(x_ND, levels, block)
    if low == high:
        return {int(rank): low for rank in wanted}
    bottom, scale = dtype(low), dtype(min(BINS / (high - low), float(np.finfo(dtype).max)))
    counts_B = xp.zeros(BINS, dtype=np.int64)
    for values in _members(x_ND, levels, block):
        counts_B += xp.bincount(_bin(values, bottom, scale), minlength=BINS)
    counts_B = to_numpy(counts_B)
    start_B = np.cumsum(counts_B) - counts_B
    hit = (
        np.searchsorted(start_B, wanted, side="right") - 1
    )  # of bins that start equal, the last: the one not empty
    bins = np.unique(hit)
    full = counts_B[bins] > max(COLLECT // max(len(bins), 1), 1)
    found: dict[int, float] = {}
    for bin_ in bins[full].tolist():
        inner = _select(x_ND, wanted[hit == bin_] - start_B[bin_], (*levels, (bottom, scale, bin_)), block)
        found |= {rank + int(start_B[bin_]): value for rank, value in inner.items()}
    ordered = _collect(x_ND, bins[~full], bottom, scale, levels, block)
    offset_B = np.zeros(BINS, dtype=np.int64)
    offset_B[bins[~full]] = np.cumsum(counts_B[bins[~full]]) - counts_B[bins[~full]]
    for rank, bin_ in zip(wanted.tolist(), hit.tolist(), strict=True):
        if rank not in found:
            found[rank] = float(ordered[offset_B[bin_] + rank - start_B[bin_]])
    return found


def _collect(
    x_ND: Any, bins: np.ndarray, low: Any, scale: Any, levels: tuple[Level, ...], block: int
) -> np.ndarray:
    """The sorted members of `levels` that fall in `bins`, on the host."""
    xp = namespace(x_ND)
    if len(bins) == 0:
        return np.empty(0, dtype=x_ND.dtype)
    chosen_B = np.zeros(BINS, dtype=bool)
    chosen_B[bins] = True
    table_B = xp.asarray(chosen_B)
    parts = []
    for values in _members(x_ND, levels, block):
        parts.append(values[table_B[_bin(values, low, scale)]])
    return to_numpy(xp.sort(xp.concatenate(parts)))
