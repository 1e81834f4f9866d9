"""`camae map`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from camae.cli.console import say


def map_screen(
    embeddings: Annotated[Path, typer.Argument(help="wells.parquet of `camae embed`")],
    pairs: Annotated[Path, typer.Argument(help="file or folder of known pairs, two columns of names each")],
    method: Annotated[str, typer.Option(help="alignment: none, center, standardize, pca, tvn ...")] = "tvn",
    out: Annotated[Path | None, typer.Option(help="CSV of the strongest relationships")] = None,
) -> None:
    """Align embeddings, relate perturbations, and recall known pairs."""
    from camae import maps
    from camae.files import write_text
    from camae.maps import perturbation_map

    result = perturbation_map.map_screen(embeddings, method)
    scores = maps.recall(result.vectors, result.names, maps.read_pairs_folder(pairs), bootstrap=1000)
    say(scores.to_string())
    if out is not None:
        strongest = maps.strongest(result.vectors, result.names, count=1000, side="both")
        write_text(out, strongest.to_csv(index=False))
        say(f"strongest relationships: {out}")
