"""Profile tables of the field: `Metadata_*` columns and features in Parquet, CSV or AnnData, from any tool.

`camae.embedding_table` writes and reads the embeddings tables of this package (Parquet alone); the reader here takes
tables of other tools as well (pycytominer, JUMP, AnnData) and checks that a well occurs once.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from camae.embedding_table import read_table
from camae.errors import CamaeError, MissingBackendError, MissingFileError

WELL = ("Metadata_Source", "Metadata_Batch", "Metadata_Plate", "Metadata_Well", "Metadata_Site")


def read_profiles(path: str | Path) -> tuple[pd.DataFrame, npt.NDArray]:
    """Read a table of profiles: metadata and features.

    Parameters
    ----------
    path : path
        .parquet, .csv, .csv.gz, .tsv, .tsv.gz (pycytominer's), or .h5ad (AnnData: metadata in obs, features in X).

    Returns
    -------
    meta : DataFrame
        n rows; the `Metadata_*` columns as they are (AnnData's obs columns get the prefix).
    x : (n, d) array
        Features, in the dtype that is stored.

    Raises
    ------
    MissingFileError
        When there is no such file.
    CamaeError
        For another kind of file, no features, features that are not numbers, or a well (or site) that occurs twice.
    MissingBackendError
        For .h5ad without the package anndata.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(
            f"{path} does not exist; give a table of profiles (.parquet, .csv, .csv.gz, .h5ad)"
        )
    if path.suffix == ".h5ad":
        meta, x = _read_anndata(path)
    else:
        table = _read_columns(path)
        features = [name for name in table.columns if not name.startswith("Metadata_")]
        if not features:
            raise CamaeError(f"{path} has no feature columns: every column starts with Metadata_")
        odd = [name for name in features if table[name].dtype.kind not in "fiub"]
        if odd:
            raise CamaeError(
                f"{path}: the column '{odd[0]}' does not hold numbers; name metadata columns Metadata_..., or drop it"
            )
        meta, x = table.drop(columns=features), table[features].to_numpy()
    _check_wells(meta, path)
    return meta, x


def _read_columns(path: Path) -> pd.DataFrame:
    name = path.name.lower()
    if name.endswith(".parquet"):
        return read_table(path)[0]
    for ending, separator in ((".csv", ","), (".tsv", "\t")):
        if name.endswith((ending, ending + ".gz")):
            try:
                return pd.read_csv(path, sep=separator)
            except (ValueError, OSError) as error:
                raise CamaeError(f"{path} is not a readable table ({error})") from None
    raise CamaeError(
        f"{path}: cannot tell the format; profiles are read from .parquet, .csv(.gz), .tsv(.gz) or .h5ad"
    )


def _read_anndata(path: Path) -> tuple[pd.DataFrame, npt.NDArray]:
    try:
        import anndata
    except ImportError:
        raise MissingBackendError(
            f"{path} needs the package anndata; pip install anndata, or save as Parquet"
        ) from None
    data = anndata.read_h5ad(path)
    meta = data.obs.reset_index(drop=True)
    meta.columns = [name if name.startswith("Metadata_") else f"Metadata_{name}" for name in meta.columns]
    x = data.X.toarray() if hasattr(data.X, "toarray") else np.asarray(data.X)
    return meta, x


def _check_wells(meta: pd.DataFrame, path: Path) -> None:
    keys = [name for name in WELL if name in meta.columns]
    if "Metadata_Plate" not in keys or "Metadata_Well" not in keys:
        return
    twice = meta.duplicated(keys)
    if twice.any():
        row = int(twice.to_numpy().argmax())
        what = ", ".join(f"{name.removeprefix('Metadata_')} {meta[name].iloc[row]}" for name in keys)
        raise CamaeError(
            f"{path}: {what} occurs more than once (again in row {row}, {int(twice.sum())} in all)"
        )


def column(meta: pd.DataFrame, name: str, what: str) -> npt.NDArray[np.str_]:
    """Metadata column as text. Raises CamaeError naming the columns there are."""
    if name not in meta.columns:
        raise CamaeError(
            f"the profiles have no column {name} for the {what}; there are {', '.join(meta.columns)}"
        )
    return meta[name].fillna("").astype(str).to_numpy(str)
