"""Arrays of maps: types, and what is done with rows, for NumPy and CuPy alike.

Public functions take torch tensors as well (`takes_tensors`), which are arrays before anything is done with them.
Numbers (embeddings) stay where they are: every function asks the array for its namespace (numpy or cupy) and calls
that. Labels (plates, perturbations, gene names) and masks are NumPy arrays on the host, because no GPU array library
holds text. Moving numbers between them is always written out (`to_numpy`, `beside`).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from camae.kernels.arrays.backends import ArrayBackend, array_backend
from camae.kernels.arrays.namespaces import beside, namespace, to_host, to_numpy
from camae.kernels.arrays.tensors import takes_tensors

__all__ = [
    "Array",
    "ArrayBackend",
    "HostTable",
    "Labels",
    "Mask",
    "array_backend",
    "beside",
    "groups",
    "namespace",
    "rows",
    "takes_tensors",
    "to_host",
    "to_numpy",
    "unit_rows",
]

# A NumPy array, or a CuPy array: the same methods, and results in the same library. CuPy is not installed where
# types are checked, so NumPy's type stands for both.
Array: TypeAlias = np.ndarray
Labels: TypeAlias = Sequence[str] | np.ndarray | pd.Series  # one text label for each row
_SQUARES_UNDERFLOW = {4: 1e-15, 8: 1e-140}  # length under which squares lose digits, by bytes of a number
Mask: TypeAlias = Sequence[bool] | np.ndarray | pd.Series  # one boolean for each row


class HostTable:
    """Table (n, d) on the host whose rows are handed out in the library `xp`, so that one block at a time is there.

    It stands for x where an alignment is fitted on a table, such as a file mapped to memory, that a device need not
    hold. table: (n, d) NumPy array, fp32 or fp64.
    """

    ndim = 2

    def __init__(self, table: np.ndarray, xp: ModuleType) -> None:
        self._table, self._xp = table, xp
        self.shape, self.dtype = table.shape, table.dtype

    def __array_namespace__(self, **_: object) -> ModuleType:
        return self._xp

    def __getitem__(self, index: slice | int | np.ndarray) -> Array:
        return self._xp.asarray(np.asarray(self._table[index]))


def groups(by: np.ndarray) -> tuple[np.ndarray, list[npt.NDArray[np.intp]]]:
    """Sorted unique labels, and for each the (ascending) rows that carry it."""
    names, code_N = np.unique(by, return_inverse=True)
    order_N = np.argsort(code_N, kind="stable")
    bounds = np.searchsorted(code_N[order_N], np.arange(1, len(names)))
    return names, np.split(order_N, bounds)


def rows(x: Array, index: np.ndarray) -> Array:
    """x[index] with a host index, in x's own namespace."""
    if isinstance(x, HostTable):
        return x[index]
    return x[namespace(x).asarray(index)]


def unit_rows(x: Array) -> Array:
    """Rows of `x` divided by their length; rows of length zero stay zero (their cosine with anything is 0)."""
    xp = namespace(x)
    length = xp.sqrt(xp.einsum("ij,ij->i", x, x))
    tiny = np.flatnonzero(to_numpy(length < _SQUARES_UNDERFLOW[x.dtype.itemsize]))
    if len(tiny):  # squares of such rows are lost: they are scaled by their largest entry first
        small = rows(x, tiny)
        largest = xp.abs(small).max(axis=1, keepdims=True)
        small = small / xp.where(largest > 0, largest, xp.ones_like(largest))
        x, at = x.copy(), xp.asarray(tiny)
        x[at] = small
        length[at] = xp.sqrt(xp.einsum("ij,ij->i", small, small))
    return x / xp.where(length > 0, length, xp.ones_like(length))[:, None]
