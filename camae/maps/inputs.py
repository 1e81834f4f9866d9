"""Checks of what users pass: embeddings, labels, masks and negative controls, with errors that name the row."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pandas as pd

from camae.errors import CamaeError
from camae.maps.arrays import Array, Labels, Mask, namespace, to_host, to_numpy

ROWS = 16_384  # rows in memory at once of a table that is handed out in blocks


def embeddings(x: Array | pd.DataFrame | list[list[float]], what: str = "x") -> Array:
    """`x` as a finite (n, d) floating-point table: integers become fp64, fp16 becomes fp32.

    Raises CamaeError naming the first bad row and column.
    """
    table = np.asarray(x) if isinstance(x, list | pd.DataFrame) else x
    try:
        xp = namespace(table)
    except TypeError as error:
        raise CamaeError(f"{what}: {error}; convert it before the call") from None
    if isinstance(table, np.ma.MaskedArray) and np.ma.getmaskarray(table).any():
        raise CamaeError(f"{what} is a masked array with masked values; drop or fill them before the call")
    if table.ndim != 2 or table.shape[0] == 0 or table.shape[1] == 0:
        raise CamaeError(
            f"{what} must be a table (rows, features) that is not empty, got shape {table.shape}"
        )
    if table.dtype.kind not in "fiub":
        raise CamaeError(
            f"{what} must hold numbers, got dtype {table.dtype}; keep Metadata_* columns out of the features"
        )
    if table.dtype.kind != "f" or table.dtype.itemsize > 8:  # linear algebra has no long double
        table = table.astype(xp.float64)
    elif table.dtype.itemsize < 4:
        table = table.astype(xp.float32)
    # One pass: the sum of squares of a row is finite only if the row is (overflow is reported as well).
    parts = (table[start : start + ROWS] for start in range(0, table.shape[0], ROWS))
    bad = xp.concatenate([~xp.isfinite(xp.einsum("ij,ij->i", part, part)) for part in parts])
    if bool(bad.any()):
        row = int(xp.argmax(bad))
        column = int(np.argmin(np.isfinite(to_numpy(table[row]))))
        raise CamaeError(
            f"{what} has a value that is not finite (or overflows when squared) in row {row}, column {column}, "
            f"and in {int(bad.sum())} rows in all; drop or repair them first"
        )
    return table


def check_finite(out: Array, what: str) -> Array:
    """`out` (n, k), a result. Raises CamaeError naming the first row and column that is not finite."""
    xp = namespace(out)
    if not bool(xp.isfinite(out.sum(dtype=np.float64))):
        bad = ~xp.isfinite(out).all(axis=1)
        if bool(bad.any()):
            row = int(xp.argmax(bad))
            column = int(np.argmin(np.isfinite(to_numpy(out[row]))))
            raise CamaeError(
                f"{what} gives a value that is not finite in row {row}, column {column}, and in {int(bad.sum())} "
                "rows in all; the table holds values too large or too small for its precision: rescale it, or give "
                "float64"
            )
    return out


def labels(values: Labels, n: int, what: str) -> npt.NDArray[np.str_]:
    """`values` as n text labels. Raises CamaeError when the length differs or a label is missing."""
    # A list becomes an array of objects first: NumPy alone would write a missing label as the text "nan".
    raw = np.asarray(values, dtype=object) if isinstance(values, list | tuple) else to_host(values)
    if raw.ndim != 1 or len(raw) != n:
        raise CamaeError(f"{what} needs one label for each of the {n} rows, got shape {raw.shape}")
    missing = np.asarray(pd.isna(raw))
    if isinstance(values, np.ma.MaskedArray):
        missing = missing | np.ma.getmaskarray(values)
    if missing.any():
        raise CamaeError(
            f"{what} is missing in row {int(missing.argmax())} ({int(missing.sum())} rows in all)"
        )
    return raw.astype(str)


def mask(values: Mask, n: int, what: str) -> npt.NDArray[np.bool_]:
    """`values` as n booleans. Raises CamaeError for other lengths or types."""
    raw = to_host(values)
    if raw.shape != (n,) or raw.dtype != np.bool_:
        raise CamaeError(
            f"{what} needs one boolean for each of the {n} rows, got shape {raw.shape} of dtype {raw.dtype}"
        )
    return raw


def control_rows(values: Mask, n: int) -> npt.NDArray[np.intp]:
    """Rows that a mask of n booleans marks as negative controls. Raises CamaeError when there is none."""
    chosen = np.flatnonzero(mask(values, n, "control"))
    if len(chosen) == 0:
        raise CamaeError("no row is marked as a negative control; check the control= mask")
    return chosen


def listing(names: Iterable[object], limit: int = 3) -> str:
    """'a, b, c and 5 more', for messages."""
    every = [str(name) for name in names]
    rest = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(every[:limit]) + rest
