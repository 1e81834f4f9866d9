"""`camae export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from camae.cli.console import say, say_left_out

_SHOWN = 3


def export(
    source: Annotated[
        Path,
        typer.Argument(
            help="embeddings: .parquet, .h5ad, or a folder of workspace_dl or of DeepProfiler's npz"
        ),
    ],
    out: Annotated[
        Path, typer.Option(help=".parquet, .h5ad, or a folder that gets the layout of workspace_dl")
    ],
    network: Annotated[str, typer.Option(help="in workspace_dl: name of the model and its hash")] = "",
    form: Annotated[
        str, typer.Option(help="in workspace_dl: files of sites, 'parquet' or 'npz'")
    ] = "parquet",
) -> None:
    """Write embeddings as AnnData, Parquet, or in the Cell Painting Gallery's layout: same rows, names, numbers."""
    from camae.embedding.export import export_table
    from camae.omissions import Omissions
    from camae.workspace_dl import SiteForm

    left_out = Omissions()
    files = export_table(source, out, network, cast("SiteForm", form), left_out)
    say_left_out(left_out)
    more = f" and {len(files) - _SHOWN:,} more" if len(files) > _SHOWN else ""
    count = "1 file" if len(files) == 1 else f"{len(files):,} files"
    say(f"{count} written: {', '.join(map(str, files[:_SHOWN]))}{more}")
