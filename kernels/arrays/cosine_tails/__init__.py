"""cosine_tails: exact order statistics of all pairwise cosines, without the n x n matrix. NumPy or CuPy, no torch.

Input: unit rows x_ND (fp32 or fp64), so that x_i . x_j is a cosine. The n (n - 1) / 2 unordered pairs are visited
block by block (selection.py says how often). Floor: 2 n^2 D / 2 FLOP a pass and one read of each block from cache:
19 TFLOP for n = 136,000, D = 1024. All passes form the same blocks by the same call, so a pair has the same bits in
each, and the cosines of chosen pairs are taken from these blocks as well: ties are ties.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from camae.kernels.arrays.cosine_tails.blocks import Array, ChosenPairs, Ints, default_block
from camae.kernels.arrays.cosine_tails.selection import PairSelection

FEW_RANKS = 8  # as many are looked for in windows: each costs three comparisons of every value
MANY_PAIRS = 1 << 28  # beyond this many pairs the bins are finer, so that the second pass gathers less


def cosines_of_pairs(x_ND: Array, left_P: Ints, right_P: Ints, block: int | None = None) -> Array:
    """Cosines of the pairs (left_P, right_P), on the host, bit for bit those that `order_statistics` ranks.

    left_P and right_P are host indices with left != right; the order inside a pair does not matter.
    """
    return ChosenPairs(x_ND, left_P, right_P, block or default_block(x_ND)).take_rest()


def order_statistics_and_pairs(
    x_ND: Array, ranks: Sequence[int], left_P: Ints, right_P: Ints, block: int | None = None
) -> tuple[Array, Array]:
    """`order_statistics` and `cosines_of_pairs` in one pass over the pairs, where NumPy makes it."""
    block = block or default_block(x_ND)
    chosen = ChosenPairs(x_ND, left_P, right_P, block)
    return order_statistics(x_ND, ranks, block, chosen), chosen.take_rest()


def order_statistics(
    x_ND: Array, ranks: Sequence[int], block: int | None = None, chosen: ChosenPairs | None = None
) -> Array:
    """The values at 0-based `ranks` of the sorted cosines of all n (n - 1) / 2 unordered pairs.

    x_ND: unit (or zero) rows. block: rows of a block (`default_block`). Returns a host array in x's dtype, one
    value for each rank. chosen: pairs whose cosines the first pass takes along.
    Raises ValueError for a rank outside 0 .. n (n - 1) / 2 - 1.
    """
    n = x_ND.shape[0]
    total = n * (n - 1) // 2
    wanted = np.unique(np.asarray(ranks, dtype=np.int64))
    if len(wanted) and (wanted[0] < 0 or wanted[-1] >= total):
        raise ValueError(f"ranks must lie in 0..{total - 1}, got {wanted[0]}..{wanted[-1]}")
    bins = 1 << (16 if total < MANY_PAIRS else 20)
    pairs = PairSelection(x_ND, block or default_block(x_ND), bins, chosen)
    found = pairs.in_windows(wanted) if len(wanted) <= FEW_RANKS else {}
    left = np.array([rank for rank in wanted.tolist() if rank not in found], dtype=np.int64)
    if len(left):
        found |= pairs.select(left, ())
    return np.array([found[int(rank)] for rank in ranks], dtype=x_ND.dtype)
