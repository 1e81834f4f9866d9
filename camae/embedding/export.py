"""AnnData export: embeddings tables in the form of scanpy and other single-cell packages."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from camae.embedding_table import feature_names, features_of, read_table
from camae.errors import CamaeError, MissingBackendError
from camae.files import write_atomic

if TYPE_CHECKING:
    from anndata import AnnData


def to_anndata(table: pd.DataFrame | str | Path, out: str | Path | None = None) -> AnnData:
    """An embeddings table as AnnData: X (N, D) float32, obs the Metadata_* columns, var the feature names.

    table: a table, or the path of one (`wells.parquet`, `sites.parquet`); what that file says about its model
        and preprocessing is kept as JSON in uns["camae"].
    out: also write it there (.h5ad), whole or not at all.
    Raises MissingBackendError without the package anndata, CamaeError for a table without features.
    """
    try:
        import anndata
    except ImportError:
        raise MissingBackendError(
            "AnnData export needs the package anndata, which is not installed: pip install 'camae[anndata]'"
        ) from None
    about: dict[str, object] = {}
    if not isinstance(table, pd.DataFrame):
        table, about = read_table(table)
    metadata = table.filter(regex="^Metadata_")
    names = feature_names(table)
    if not names:
        raise CamaeError("the table has no feature columns: nothing to export")
    result = anndata.AnnData(
        X=features_of(table),
        obs=metadata.set_axis([str(i) for i in range(len(table))]),
        var=pd.DataFrame(index=names),
        uns={"camae": json.dumps(about)},
    )
    if out is not None:
        path = Path(out)
        if path.suffix != ".h5ad":
            raise CamaeError(f"{path}: an AnnData file is written as .h5ad")
        write_atomic(path, lambda temporary: temporary.write_bytes(_h5ad(result)))
    return result


def _h5ad(table: AnnData) -> memoryview:
    """The bytes of an .h5ad file. Made in memory: HDF5 cannot end a file on a full disk without tracebacks."""
    import h5py
    from anndata.io import write_elem

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        write_elem(file, "/", table)
    return buffer.getbuffer()
