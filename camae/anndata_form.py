"""AnnData form of a table of profiles: the same rows, names and numbers as its Parquet form, and the way back.

X holds the features in the dtype they have, obs all other columns, `uns["camae"]` what the file says about model,
preprocessing and provenance (JSON), `uns["camae_table"]` what AnnData cannot hold (JSON): order of the columns,
missing cells, names that HDF5 has no place for. What mantispy's schema 2.0 asks for (`mantispy.io.validate`) is
added beside it in `uns["mantispy"]`, `var` and a few columns of obs, and taken away again on the way back.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from camae.embedding_table import feature_names
from camae.errors import CamaeError, MissingBackendError
from camae.mantispy_schema import controls_of, derived_columns, schema_of, variable_columns
from camae.text_table import text_as_given

if TYPE_CHECKING:
    from types import ModuleType

    from anndata import AnnData

ABOUT, FORM = "camae", "camae_table"  # keys of uns
_AS_GIVEN = "as_given_"  # columns of obs that a schema has other words for
_RESERVED = ("_index", "")  # names that AnnData does not give to a column


def import_anndata(what: str) -> ModuleType:
    """The package anndata. Raises MissingBackendError: `what` needs it."""
    try:
        import anndata
    except ImportError:
        raise MissingBackendError(
            f"{what} needs the package anndata, which is not installed: pip install 'camae[anndata]'"
        ) from None
    return anndata


def as_anndata(table: pd.DataFrame, about: Mapping[str, object], features: Sequence[str] = ()) -> AnnData:
    """A table of N rows as AnnData: X (N, D), obs (N, all other columns), var (D feature names), uns.

    features: columns of X; by default those of `camae.embedding_table.select_features`. Columns of obs that are
    neither text, numbers nor booleans become text.
    Raises MissingBackendError without anndata, CamaeError for a table without features or with text that HDF5
    cannot hold.
    """
    names = list(features) or feature_names(table)
    if not names:
        raise CamaeError("the table has no feature columns: nothing to export")
    if table.empty:
        raise CamaeError("the table has no rows: nothing to export")
    anndata = import_anndata("AnnData export")
    table = table.reset_index(drop=True)
    matrix = table[names].to_numpy()
    other = [str(name) for name in table.columns if name not in set(names)]
    obs, form = _obs(table[other])
    form["columns"] = [str(name) for name in table.columns]
    form["dtypes"] = {name: str(table[name].dtype) for name in names if table[name].dtype != matrix.dtype}
    derived = derived_columns(obs)
    form["derived"] = list(derived)
    for name, values in (controls_of(obs) or {}).items():
        if name in obs:
            obs[_AS_GIVEN + name] = obs[name]
        else:
            form["derived"].append(name)
        derived[name] = values
    return anndata.AnnData(
        X=matrix,
        obs=obs.assign(**derived).set_axis([str(i) for i in range(len(obs))]),
        var=pd.DataFrame(variable_columns(len(names)), index=pd.Index(names, dtype=object)),
        uns={ABOUT: json.dumps(about), FORM: json.dumps(form), "mantispy": schema_of(obs.assign(**derived))},
    )


def _obs(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Columns as AnnData holds them, and what it cannot hold of them."""
    form: dict[str, Any] = {"keys": {}, "missing": {}}
    columns = {}
    for name in table.columns:
        column, key = table[name], _key(name)
        if key != name:
            form["keys"][name] = key
        if isinstance(column.dtype, np.dtype) and column.dtype.kind in "biuf":
            columns[key] = column.to_numpy()
            continue
        missing = np.flatnonzero(column.isna().to_numpy())
        if len(missing):
            form["missing"][name] = missing.tolist()
        text = text_as_given(column)
        null = text.str.contains("\0", regex=False)
        if "\0" in name or null.any():
            raise CamaeError(f"column {name!r} holds the character NUL, which HDF5 cannot store; take it out")
        columns[key] = text.astype(object).to_numpy()
    return pd.DataFrame(columns, index=range(len(table))), form


def _key(name: str) -> str:
    """Name of a column in obs: HDF5 takes a slash for a folder."""
    quoted = name.replace("%", "%25").replace("/", "%2F") if "/" in name else name
    return f"%{quoted}" if name in _RESERVED or name.startswith(_AS_GIVEN) else quoted


def is_own(data: AnnData) -> bool:
    """Whether `as_anndata` made it."""
    return FORM in data.uns and ABOUT in data.uns


def table_of(data: AnnData) -> tuple[pd.DataFrame, dict[str, object]]:
    """The table that `as_anndata` took, and its `about`; rows of a selection stay in the order of the selection.

    Rows that were taken out, and features, are missing in the table too.
    Raises CamaeError for AnnData of another program.
    """
    if not is_own(data):
        raise CamaeError(
            f"uns holds no {FORM!r}: this AnnData is not of camae; maps.read_profiles reads those of other programs"
        )
    form, about = json.loads(str(data.uns[FORM])), json.loads(str(data.uns[ABOUT]))
    matrix = data.X.toarray() if hasattr(data.X, "toarray") else np.asarray(data.X)
    place = {str(name): k for k, name in enumerate(data.var_names)}
    rows = [
        int(name) if str(name).isdecimal() else -1 for name in data.obs_names
    ]  # of the table that was exported
    columns: dict[str, Any] = {}
    for name in form["columns"]:
        key = form["keys"].get(name, name)
        if name in place:
            columns[name] = matrix[:, place[name]].astype(form["dtypes"].get(name, matrix.dtype))
        elif key in data.obs:
            given = data.obs[_AS_GIVEN + key if _AS_GIVEN + key in data.obs else key]
            columns[name] = _values(given, np.isin(rows, form["missing"].get(name, [])))
    return pd.DataFrame(columns, index=range(len(rows))), about


def _values(column: pd.Series, missing: np.ndarray) -> np.ndarray:
    """Values of a column of obs; text as objects, None where it was missing."""
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "biuf":
        return column.to_numpy()
    values = column.astype(object).to_numpy().copy()
    values[missing] = None
    return values


def h5ad_bytes(data: AnnData) -> bytes:
    """The bytes of an .h5ad file. Made in memory: HDF5 cannot end a file on a full disk without tracebacks."""
    import h5py
    from anndata.io import write_elem

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        write_elem(file, "/", data)
    return buffer.getvalue()
