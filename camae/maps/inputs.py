"""Checks of what users pass: embeddings, labels, masks, negative controls, numbers and tables, with errors that name
the row or the argument."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from camae.errors import CamaeError
from camae.maps.arrays import Array, Labels, Mask, beside, namespace, to_host, to_numpy
from camae.typed_settings import Limits

ROWS = 16_384  # rows in memory at once of a table that is handed out in blocks
ANY = Limits()
COUNT = Limits(low=1)  # of rows, draws and the like
_SEED = Limits(low=0)


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


def labels(values: Labels, n: int | None, what: str) -> npt.NDArray[np.str_]:
    """`values` as n text labels (None: as many as there are). Raises CamaeError for another length or a missing one."""
    # A list becomes an array of objects first: NumPy alone would write a missing label as the text "nan".
    raw = np.asarray(values, dtype=object) if isinstance(values, list | tuple) else to_host(values)
    if raw.ndim != 1 or (n is not None and len(raw) != n):
        if n is None:
            raise CamaeError(f"{what} needs one label for each row, got shape {raw.shape}")
        raise CamaeError(f"{what} needs one label for each of the {n} rows, got shape {raw.shape}")
    missing = np.asarray(pd.isna(raw))
    if isinstance(values, np.ma.MaskedArray):
        missing = missing | np.ma.getmaskarray(values)
    if missing.any():
        raise CamaeError(
            f"{what} is missing in row {int(missing.argmax())} ({int(missing.sum())} rows in all)"
        )
    return raw.astype(str)


def batches(values: Labels, n: int, what: str = "batch") -> npt.NDArray[np.str_]:
    """`values` as n batch labels. Raises CamaeError as `labels`, and where a label is empty."""
    name_N = labels(values, n, what)
    empty = name_N == ""
    if empty.any():
        raise CamaeError(
            f"{what} is empty in {int(empty.sum())} of {n} rows (first: row {int(empty.argmax())}); name the batch of "
            "these rows, or leave them out"
        )
    return name_N


def named_rows(
    v: Array | pd.DataFrame | list[list[float]], names: Labels, what: str = "v"
) -> tuple[Array, npt.NDArray[np.str_]]:
    """Map `v` as `embeddings`, and the names of its rows. Raises CamaeError as `embeddings` and `labels`."""
    table = embeddings(v, what)
    return table, labels(names, table.shape[0], "names" if what == "v" else f"names of {what}")


def origin_of(origin: npt.ArrayLike, z: Array) -> Array:
    """Origin (d,), (1, d) or one number, to subtract from rows of z (n, d), in z's namespace and dtype.

    Raises CamaeError for another.
    """
    try:
        found = beside(origin, z).astype(z.dtype, copy=False)
        fits = found.shape in ((z.shape[1],), (1, z.shape[1]), ()) and bool(
            namespace(found).isfinite(found).all()
        )
    except (TypeError, ValueError):  # text, or lists of several lengths
        fits = False
    if not fits:
        raise CamaeError(
            f"origin must hold {z.shape[1]} finite numbers, one for each feature of the embeddings"
        )
    return found


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


def is_number(value: object, limits: Limits, whole: bool = False) -> bool:
    """Whether `value` is a finite number (whole: an integer) within the limits; a bool is none."""
    plain = value.item() if isinstance(value, np.generic) else value
    kinds = (int,) if whole else (int, float)
    if isinstance(plain, bool) or not isinstance(plain, kinds):
        return False
    return (isinstance(plain, int) or math.isfinite(plain)) and limits.allow(plain)


def check_number(value: object, what: str, limits: Limits = ANY, whole: bool = False) -> None:
    """Raise CamaeError for what `is_number` says is none. what: the argument, for the message."""
    if not is_number(value, limits, whole):
        wanted = ["an integer" if whole else "a finite number", str(limits)]
        raise CamaeError(f"{what} is {value!s:.60}, which is not {', '.join(filter(None, wanted))}")


def check_seed(seed: object) -> None:
    """Raise CamaeError for what cannot seed random numbers."""
    if not is_number(seed, _SEED, whole=True):
        raise CamaeError(f"seed {seed!s:.60} is not a whole number from 0 on")


def check_threshold(threshold: object) -> None:
    """Raise CamaeError for what is no false-discovery rate."""
    if not is_number(threshold, Limits(above=0, below=1)):
        raise CamaeError(f"threshold {threshold} is not a false-discovery rate; give one between 0 and 1")


def check_metadata(meta: object, n: int | None = None) -> None:
    """Raise CamaeError where `meta` is no table, or has another number of rows than the n embeddings."""
    if not isinstance(meta, pd.DataFrame):
        raise CamaeError(
            f"the metadata is a {type(meta).__name__}; give a DataFrame, one row for each embedding"
        )
    if n is not None and len(meta) != n:
        raise CamaeError(f"the metadata has {len(meta)} rows and the embeddings {n}; they must correspond")


def check_result(table: object, needed: Sequence[str], of: str) -> None:
    """Raise CamaeError where `table` is not what the function `of` returns: a table with rows and these columns."""
    if not isinstance(table, pd.DataFrame):
        why = f"it is a {type(table).__name__}"
    elif missing := [name for name in needed if name not in table.columns]:
        why = f"it lacks the column {missing[0]}"
    elif len(table) == 0:
        why = "it has no rows"
    else:
        return
    raise CamaeError(f"the table is not the result of {of}: {why}; give that result as it is")


def listing(names: Iterable[object], limit: int = 3) -> str:
    """'a, b, c and 5 more', for messages."""
    every = [str(name) for name in names]
    rest = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(every[:limit]) + rest
