"""`camae data check`, `camae data plan` and `camae pack`: screens before they are used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Unpack

import typer

from camae.cli.console import say, say_left_out, say_table
from camae.cli.options import Data, Reader, with_options
from camae.embedding.config import ReadKeywords, ReadOptions
from camae.files import check_outputs, output_folder

_ROWS_SHOWN = 100


@with_options(ReadOptions, incomplete="keep")
def check(
    data: Data,
    out: Annotated[
        Path | None, typer.Option(help="CSV of the problems; what was left out goes beside it")
    ] = None,
    known: Annotated[
        str | None, typer.Option(help="also look for the published traps of a collection: 'jump'")
    ] = None,
    reader: Reader = None,
    **reading: Unpack[ReadKeywords],
) -> None:
    """Find missing, damaged, wrong-sized, saturated, constant and duplicate planes; exit code 1 if there are any."""
    from camae.dataloader.screen_tools import check as checker
    from camae.progress import count_bar
    from camae.text_table import write_csv

    if out is not None:
        check_outputs([out], ".csv", [data])
    manifest = ReadOptions(**reading).read(data)
    with count_bar("checking planes") as progress:
        problems = checker.check(manifest, progress=progress, reader=reader, known=known)
    if out is not None:
        write_csv(out, problems)
        manifest.left_out.write(out.parent, f"{out.stem}.left_out.csv")
    if not problems.empty:
        shown = problems.head(_ROWS_SHOWN).itertuples(index=False)
        say_table(shown, list(problems.columns), title=f"{len(problems)} problems")
    say_left_out(manifest.left_out, manifest.notes)
    found = "no problems found" if problems.empty else f"{len(problems):,} problems found"
    say(f"{found}, looked at {problems.attrs['looked_at']}")
    if not problems.empty:
        raise typer.Exit(1)


@with_options(ReadOptions, incomplete="keep")
def plan(
    data: Data,
    destination: Annotated[str, typer.Option(help="folder that the copy commands write to")] = ".",
    reader: Reader = None,
    **reading: Unpack[ReadKeywords],
) -> None:
    """Count files and GB of a screen, and print the commands that fetch what is not here."""
    from camae.dataloader.screen_tools import plan as planner

    manifest = ReadOptions(**reading).read(data)
    result = planner.plan(manifest, destination, reader)
    for line in (result, *result.commands):
        say(line)
    say_left_out(manifest.left_out, manifest.notes)


@with_options(ReadOptions)
def pack(
    data: Data,
    out: Annotated[Path, typer.Option(help="folder of the packed screen; an unfinished one is continued")],
    codec: Annotated[str, typer.Option(help="'zstd' (256-pixel tiles) or 'none' (uncompressed)")] = "zstd",
    reader: Reader = None,
    **reading: Unpack[ReadKeywords],
) -> None:
    """Rewrite a screen to crop-friendly TIFFs that any TIFF tool reads."""
    from camae.dataloader.screen_tools import pack as packer
    from camae.progress import count_bar

    output_folder(out, data)
    manifest = ReadOptions(**reading).read(data)
    with count_bar("packing planes") as progress:
        result = packer.pack(manifest, out, codec, progress=progress, reader=reader)
    manifest.left_out.write(out)
    say_left_out(manifest.left_out, manifest.notes)
    say(f"{result}\nmanifest: {out / 'manifest.parquet'}")
