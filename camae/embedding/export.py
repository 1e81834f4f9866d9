"""Tables of embeddings in the forms of other tools, and back: AnnData (scanpy, mantispy), Gallery, DeepProfiler."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from camae.anndata_form import as_anndata, h5ad_bytes, import_anndata, table_of
from camae.embedding_table import read_table, write_table
from camae.errors import CamaeError, MissingFileError
from camae.files import path_of, write_atomic
from camae.omissions import Omissions
from camae.workspace_dl import SiteForm, read_workspace, write_workspace

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
        path = path_of(out, "out")
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
    import_anndata("reading AnnData")
    table, about = table_of(_h5ad(Path(data)) if isinstance(data, str | Path) else data)
    if out is not None:
        if path_of(out, "out").suffix != ".parquet":
            raise CamaeError(f"{out}: an embeddings table is written as .parquet")
        write_table(out, table, about)
    return table


def _h5ad(path: Path) -> AnnData:
    anndata = import_anndata("reading AnnData")
    if not path.is_file():
        raise MissingFileError(f"{path}: no such AnnData file")
    try:
        return anndata.read_h5ad(path)
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise CamaeError(f"{path} is not a readable AnnData file ({error})") from None


def export_table(
    source: str | Path,
    out: str | Path,
    network: str = "",
    form: SiteForm = "parquet",
    omitted: Omissions | None = None,
) -> list[Path]:
    """Write a table of embeddings in another form, and return the files that were written.

    source: .parquet, .h5ad, or a folder of the Gallery's `workspace_dl` or of DeepProfiler's npz files.
    out: .parquet or .h5ad, or a folder that gets the Gallery's layout (`camae.workspace_dl`).
    network, form: of that layout: name of the model and its hash; files of sites as "parquet" or "npz".
    omitted: filled with what could not be read.
    Every form keeps rows, names, numbers and what the table says about model and preprocessing.
    Raises CamaeError for a table that does not fit the form, MissingBackendError for AnnData without anndata.
    """
    source, out = path_of(source, "source"), path_of(out, "out")
    if out.suffix.lower() in (".csv", ".tsv", ".txt", ".json", ".npz", ".npy"):
        raise CamaeError(
            f"{out}: a table is exported as .parquet, .h5ad, or a folder of the Gallery's layout"
        )
    if source.is_dir():
        table, about = read_workspace(source, omitted)
    elif source.suffix == ".h5ad":
        table, about = table_of(_h5ad(source))
    else:
        table, about = read_table(source)
    if table.empty:
        raise CamaeError(f"{source} has no rows: nothing to export")
    if out.suffix == ".parquet":
        return [write_table(out, table, about)]
    if out.suffix == ".h5ad":
        data = as_anndata(table, about)
        return [write_atomic(out, lambda temporary: temporary.write_bytes(h5ad_bytes(data)))]
    if not network:
        raise CamaeError(
            f"{out} is a folder of the Gallery's layout: name the model and its hash by network="
        )
    return write_workspace(table, about, out, network, form)
