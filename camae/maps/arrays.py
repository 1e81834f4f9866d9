"""One code for NumPy and CuPy: every function asks the array which namespace it belongs to.

Numbers (embeddings) stay where they are; labels (plates, perturbations, gene names) are NumPy arrays of text on
the host, because no GPU array library holds text. Moving numbers to the host is always written out (`to_numpy`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from camae.errors import CamaeError
from camae.kernels.arrays.namespaces import namespace, to_numpy


def embeddings(x: Any, what: str = "x") -> Any:
    """`x` checked as a finite (n, d) floating table; integers become fp64 and fp16 fp32.

    Raises CamaeError naming the first bad row and column.
    """
    if isinstance(x, list) or hasattr(x, "iloc"):
        x = np.asarray(x)
    try:
        xp = namespace(x)
    except TypeError as error:
        raise CamaeError(f"{what}: {error}; convert it before the call.") from None
    if x.ndim != 2 or x.shape[0] == 0 or x.shape[1] == 0:
        raise CamaeError(f"{what} must be a table (rows, features) that is not empty, got shape {x.shape}.")
    if x.dtype.kind not in "fiub":
        raise CamaeError(
            f"{what} must hold numbers, got dtype {x.dtype}; keep Metadata_* columns out of the features."
        )
    if x.dtype.kind != "f":
        x = x.astype(xp.float64)
    elif x.dtype.itemsize < 4:
        x = x.astype(xp.float32)
    # One pass: the sum of squares of a row is finite only if the row is (overflow is reported as well).
    bad = ~xp.isfinite(xp.einsum("ij,ij->i", x, x))
    if bool(bad.any()):
        row = int(xp.argmax(bad))
        column = int(np.argmin(np.isfinite(to_numpy(x[row]))))
        raise CamaeError(
            f"{what} has a value that is not finite (or overflows when squared) in row {row}, column {column}, "
            f"and in {int(bad.sum())} rows in all; drop or repair them first."
        )
    return x


def labels(values: Any, n: int, what: str) -> np.ndarray:
    """`values` as n text labels (NumPy). Raises CamaeError when the length differs or a label is missing."""
    raw = np.asarray(values)
    if raw.ndim != 1 or len(raw) != n:
        raise CamaeError(f"{what} needs one label for each of the {n} rows, got shape {raw.shape}.")
    missing = np.asarray(pd.isna(raw))
    if missing.any():
        raise CamaeError(
            f"{what} is missing in row {int(missing.argmax())} ({int(missing.sum())} rows in all)."
        )
    return raw.astype(str)


def mask(values: Any, n: int, what: str) -> np.ndarray:
    """`values` as n booleans (NumPy). Raises CamaeError for other lengths or types."""
    raw = np.asarray(values)
    if raw.shape != (n,) or raw.dtype != np.bool_:
        raise CamaeError(
            f"{what} needs one boolean for each of the {n} rows, got shape {raw.shape} of dtype {raw.dtype}."
        )
    return raw


def groups(by: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Sorted unique labels, and for each the (ascending) rows that carry it."""
    names, code_N = np.unique(by, return_inverse=True)
    order_N = np.argsort(code_N, kind="stable")
    bounds = np.searchsorted(code_N[order_N], np.arange(1, len(names)))
    return names, np.split(order_N, bounds)


def rows(x: Any, index: np.ndarray) -> Any:
    """x[index] with a host index, in x's own namespace."""
    return x[namespace(x).asarray(index)]


def unit_rows(x: Any) -> Any:
    """Rows of `x` divided by their length; rows of length zero stay zero (their cosine with anything is 0)."""
    xp = namespace(x)
    length = xp.sqrt(xp.einsum("ij,ij->i", x, x))
    return x / xp.where(length > 0, length, xp.ones_like(length))[:, None]


def listing(names: Iterable[Any], limit: int = 3) -> str:
    """'a, b, c and 5 more', for messages."""
    every = [str(name) for name in names]
    rest = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(every[:limit]) + rest
