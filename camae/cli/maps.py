"""`camae map`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from camae.cli.console import say


def map_screen(
    profiles: Annotated[
        list[Path],
        typer.Argument(help="profiles (CSV, TSV, Parquet, AnnData): wells.parquet, or one file per plate"),
    ],
    pairs: Annotated[Path, typer.Argument(help="file or folder of known pairs, two columns of names each")],
    method: Annotated[str, typer.Option(help="alignment: none, center, standardize, pca, tvn ...")] = "tvn",
    out: Annotated[Path | None, typer.Option(help="CSV of the strongest relationships")] = None,
    perturbation: Annotated[str, typer.Option(help="column of perturbations")] = "Metadata_Perturbation",
    plate: Annotated[str, typer.Option(help="column of plates, the batches")] = "Metadata_Plate",
    control: Annotated[str, typer.Option(help="column that marks controls")] = "Metadata_control_type",
    negative: Annotated[str, typer.Option(help="its value for negative controls")] = "negcon",
    escape_formulas: Annotated[
        bool, typer.Option(help="make cells harmless that a spreadsheet would run as formulas")
    ] = False,
) -> None:
    """Align embeddings, relate perturbations, and recall known pairs."""
    from camae import maps
    from camae.maps import perturbation_map
    from camae.omissions import Omissions
    from camae.text_table import write_csv

    omitted = Omissions()
    known = maps.read_pairs_folder(pairs, omitted)
    result = perturbation_map.map_screen(
        profiles, method, perturbation=perturbation, plate=plate, control=control, negative=negative
    )
    for line in [*result.notes, *omitted.lines()]:
        say(line)
    scores = maps.recall(result.vectors, result.names, known, bootstrap=1000)
    say(scores.to_string())
    if out is not None:
        strongest = maps.strongest(result.vectors, result.names, count=1000, side="both")
        write_csv(out, strongest, escape_formulas)
        say(f"strongest relationships: {out}")
