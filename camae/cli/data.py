"""`camae data check`, `camae data plan` and `camae pack`: screens before they are used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Unpack

import typer

from camae.cli.console import planes_bar, say, say_table
from camae.cli.options import Data, with_options
from camae.embedding.config import ReadKeywords, ReadOptions

_ROWS_SHOWN = 100


@with_options(ReadOptions, incomplete="skip")
def check(
    data: Data,
    out: Annotated[Path | None, typer.Option(help="CSV of the problems")] = None,
    **reading: Unpack[ReadKeywords],
) -> None:
    """Find missing, damaged, wrong-sized, saturated, constant and duplicate planes; exit code 1 if there are any."""
    from camae.dataloader.screen_tools import check as checker
    from camae.files import write_text

    manifest = ReadOptions(**reading).read(data)
    with planes_bar("checking planes") as progress:
        problems = checker.check(manifest, progress=progress)
    if out is not None:
        write_text(out, problems.to_csv(index=False))
    if problems.empty:
        say("no problems found")
        return
    shown = problems.head(_ROWS_SHOWN).itertuples(index=False)
    say_table(shown, list(problems.columns), title=f"{len(problems)} problems")
    raise typer.Exit(1)


@with_options(ReadOptions, incomplete="skip")
def plan(
    data: Data,
    destination: Annotated[str, typer.Option(help="folder that the copy commands write to")] = ".",
    **reading: Unpack[ReadKeywords],
) -> None:
    """Count files and GB of a screen, and print the commands that fetch what is not here."""
    from camae.dataloader.screen_tools import plan as planner

    result = planner.plan(ReadOptions(**reading).read(data), destination)
    for line in (result, *result.commands):
        say(line)


@with_options(ReadOptions)
def pack(
    data: Data,
    out: Annotated[Path, typer.Option(help="folder of the packed screen; an unfinished one is continued")],
    codec: Annotated[str, typer.Option(help="'zstd' (256-pixel tiles) or 'none' (uncompressed)")] = "zstd",
    **reading: Unpack[ReadKeywords],
) -> None:
    """Rewrite a screen to crop-friendly TIFFs that any TIFF tool reads."""
    from camae.dataloader.screen_tools import pack as packer

    manifest = ReadOptions(**reading).read(data)
    with planes_bar("packing planes") as progress:
        result = packer.pack(manifest, out, codec, progress=progress)
    say(f"{result}\nmanifest: {out / 'manifest.parquet'}")
