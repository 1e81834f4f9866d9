"""Block passes over all pairs of rows: the cosines of every pair, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from camae.kernels.arrays.namespaces import namespace, to_numpy

Array = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]
Visit: TypeAlias = Callable[[Array, int, int], None]  # a block of cosines, its first row and column


def default_block(x_ND: Array) -> int:
    """Rows of a block: 4 MB of fp32 cosines stay in a CPU's cache, 256 MB keep a GPU busy."""
    return 1024 if namespace(x_ND) is np else 8192


def pair_blocks(x_ND: Array, block: int, visit: Visit | None = None) -> Iterator[tuple[Array, bool]]:
    """Cosines of rows i.. with rows j.. (rows, columns), j >= i; True for a block of the diagonal (pairs above it).

    visit: called with every block and its i and j before it is given out.
    """
    for i in range(0, x_ND.shape[0], block):
        for j in range(i, x_ND.shape[0], block):
            cosines = x_ND[i : i + block] @ x_ND[j : j + block].T
            if visit is not None:
                visit(cosines, i, j)
            yield cosines, i == j


def pair_values(x_ND: Array, block: int, visit: Visit | None = None) -> Iterator[Array]:
    """The cosines of all unordered pairs (i < j), flat, block by block."""
    xp = namespace(x_ND)
    for cosines, diagonal in pair_blocks(x_ND, block, visit):
        yield cosines[~xp.tri(cosines.shape[0], dtype=bool)] if diagonal else cosines.reshape(-1)


class ChosenPairs:
    """Cosines of chosen pairs, taken from the blocks of a pass over all pairs; `values_P` on the host.

    left_P and right_P are host indices with left != right; the order inside a pair does not matter.
    """

    def __init__(self, x_ND: Array, left_P: Ints, right_P: Ints, block: int) -> None:
        self.x_ND, self.block = x_ND, block
        self.low_P, self.high_P = np.minimum(left_P, right_P), np.maximum(left_P, right_P)
        self.values_P = np.empty(len(self.low_P), dtype=x_ND.dtype)
        key_P = (self.low_P // block) * (1 << 32) + self.high_P // block
        order_P = np.argsort(key_P, kind="stable")
        parts = np.split(order_P, np.flatnonzero(np.diff(key_P[order_P])) + 1)
        self._of_block = {self._place(part): part for part in parts if len(part)}

    def _place(self, part: Ints) -> tuple[int, int]:
        first = part[0]
        return int(self.low_P[first]) // self.block * self.block, int(
            self.high_P[first]
        ) // self.block * self.block

    def take(self, cosines: Array, i: int, j: int) -> None:
        """Take the pairs of the block that begins at row i and column j."""
        part = self._of_block.pop((i, j), None)
        if part is not None:
            xp = namespace(cosines)
            self.values_P[part] = to_numpy(
                cosines[xp.asarray(self.low_P[part] - i), xp.asarray(self.high_P[part] - j)]
            )

    def take_rest(self) -> Array:
        """Form the blocks that no pass has shown, and return the cosines of all chosen pairs."""
        for i, j in list(self._of_block):
            self.take(self.x_ND[i : i + self.block] @ self.x_ND[j : j + self.block].T, i, j)
        return self.values_P
