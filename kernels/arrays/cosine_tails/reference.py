"""Reference of the order statistics: the whole matrix of cosines, sorted. NumPy, for tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from camae.kernels.arrays.cosine_tails.blocks import Array


def order_statistics_reference(x_ND: Array, ranks: Sequence[int]) -> Array:
    """The values at 0-based `ranks` of the sorted cosines of all unordered pairs, from the n x n matrix."""
    n = x_ND.shape[0]
    cosines = np.sort((x_ND @ x_ND.T)[np.triu_indices(n, 1)])
    return cosines[np.asarray(ranks, dtype=np.int64)]
