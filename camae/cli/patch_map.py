"""`camae patch-map`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Unpack

import typer

from camae.cli.console import say, say_left_out
from camae.cli.options import Control, Data, Negative, Reader, with_options
from camae.embedding.config import EmbedOptions, ReadKeywords, ReadOptions


@with_options(ReadOptions)
def patch_map(
    data: Data,
    out: Annotated[
        Path, typer.Option(help="folder of patch_map.npz and .png; in a run folder `camae report` shows them")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="run, checkpoint, model file or hf://owner/name@revision; default the one CAMAE_MODEL names"
        ),
    ] = None,
    perturbation: Annotated[
        str | None,
        typer.Option(help="whose first field is compared with controls; default the first field alone"),
    ] = None,
    column: Annotated[str, typer.Option(help="column of perturbations")] = "Metadata_Perturbation",
    control: Control = "Metadata_control_type",
    negative: Negative = "negcon",
    tiles: Annotated[str, typer.Option(help="'grid', 'center' or 'interpolate'")] = "grid",
    value_range: Annotated[
        tuple[float, float] | None,
        typer.Option(help="lowest and highest possible value of the images; needed for float images"),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="'cpu', 'cuda', 'cuda:1' ...; default a GPU if there is one")
    ] = None,
    reader: Reader = None,
    **reading: Unpack[ReadKeywords],
) -> None:
    """Show one field's patches in color, and where a perturbation differs from controls of its plate."""
    from camae.embedding import patch_map as make

    manifest = ReadOptions(**reading).read(data)
    options: EmbedOptions = {"tiles": tiles, "value_range": value_range, "device": device, "reader": reader}
    found = make(
        manifest,
        model,
        out,
        perturbation=perturbation,
        column=column,
        control=control,
        negative=negative,
        **options,
    )
    say_left_out(manifest.left_out, manifest.notes)
    for label, share in zip(found.labels, found.shares, strict=False):
        say(f"{label}: {share:.1%} of patches above the level of {found.controls} control fields")
    say(f"patch map: {out / 'patch_map.png'}")
