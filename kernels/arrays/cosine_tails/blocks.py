"""Block passes over all pairs of rows: the cosines of every pair, block by block."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from camae.kernels.arrays.namespaces import namespace

Array = npt.NDArray[np.floating]


def default_block(x_ND: Array) -> int:
    """Rows of a block: 4 MB of fp32 cosines stay in a CPU's cache, 256 MB keep a GPU busy."""
    return 1024 if namespace(x_ND) is np else 8192


def pair_blocks(x_ND: Array, block: int) -> Iterator[tuple[Array, bool]]:
    """Cosines of rows i.. with rows j.. (rows, columns), j >= i; True for a block of the diagonal (pairs above it)."""
    for i in range(0, x_ND.shape[0], block):
        for j in range(i, x_ND.shape[0], block):
            yield x_ND[i : i + block] @ x_ND[j : j + block].T, i == j


def pair_values(x_ND: Array, block: int) -> Iterator[Array]:
    """The cosines of all unordered pairs (i < j), flat, block by block."""
    xp = namespace(x_ND)
    for cosines, diagonal in pair_blocks(x_ND, block):
        yield cosines[~xp.tri(cosines.shape[0], dtype=bool)] if diagonal else cosines.reshape(-1)
