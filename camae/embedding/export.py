"""Tables of embeddings in the forms of other tools: AnnData (scanpy, mantispy), and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from camae.anndata_form import as_anndata, h5ad_bytes, import_anndata, table_of
from camae.embedding_table import read_table, write_table
from camae.errors import CamaeError, MissingFileError
from camae.files import write_atomic

if TYPE_CHECKING:
    from anndata import AnnData


def to_anndata(table: pd.DataFrame | str | Path, out: str | Path | None = None) -> AnnData:
    """An embeddings table as AnnData: X (N, D) float32, obs the Metadata_* columns, var the feature names.

    table: a table, or the path of one (`wells.parquet`, `sites.parquet`); what that file says about its model
        and preprocessing is kept as JSON in uns["camae"].
    out: also write it there (.h5ad), whole or not at all.
    Metadata_Control_Type, Metadata_Control, Metadata_Batch (the plate, where none is named), var and
    uns["mantispy"] are as `mantispy.io.validate` asks. `from_anndata` gives the table back: every row, name, number.
    Raises MissingBackendError without the package anndata, CamaeError for a table without features.
    """
    import_anndata("AnnData export")
    about: dict[str, object] = {}
    if not isinstance(table, pd.DataFrame):
        table, about = read_table(table)
    result = as_anndata(table, about)
    if out is not None:
        path = Path(out)
        if path.suffix != ".h5ad":
            raise CamaeError(f"{path}: an AnnData file is written as .h5ad")
        write_atomic(path, lambda temporary: temporary.write_bytes(h5ad_bytes(result)))
    return result


def from_anndata(data: AnnData | str | Path, out: str | Path | None = None) -> pd.DataFrame:
    """The embeddings table that `to_anndata` took, from the object or its .h5ad file.

    out: also write it there (.parquet), with what it says about model and preprocessing. Rows and features that
    were taken out of the AnnData are missing; columns that were added to obs stay there.
    Raises MissingFileError, MissingBackendError without anndata, CamaeError for AnnData of another program.
    """
    anndata = import_anndata("reading AnnData")
    if isinstance(data, str | Path):
        if not Path(data).is_file():
            raise MissingFileError(f"{data}: no such AnnData file")
        try:
            data = anndata.read_h5ad(data)
        except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise CamaeError(f"{data} is not a readable AnnData file ({error})") from None
    table, about = table_of(data)
    if out is not None:
        if Path(out).suffix != ".parquet":
            raise CamaeError(f"{out}: an embeddings table is written as .parquet")
        write_table(out, table, about)
    return table
