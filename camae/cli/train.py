"""`camae train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Unpack

import typer

from camae.cli.console import say, say_left_out
from camae.cli.options import Data, Reader, with_options
from camae.cli.settings import parse_settings
from camae.embedding.config import ReadKeywords, ReadOptions


@with_options(ReadOptions)
def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="run folder; a run found there is continued")],
    model: Annotated[str | None, typer.Option(help="preset name")] = None,
    steps: Annotated[int | None, typer.Option(help="optimizer steps")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of training settings")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="any setting, e.g. --set lr=3e-4 --set model_options.decoder=small"),
    ] = None,
    reader: Reader = None,
    resume: Annotated[bool, typer.Option(help="continue a run found in --out")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", help="no live table")] = False,
    **reading: Unpack[ReadKeywords],
) -> None:
    """Train a CA-MAE."""
    import camae

    values = parse_settings(settings)
    named = {"steps": steps, "model": model, "reader": reader}
    values |= {name: value for name, value in named.items() if value is not None}
    if channels := reading.pop("channels", ()):
        values["channels"] = channels
    run = camae.train(data, out=out, config=config, resume=resume, quiet=quiet, **reading, **values)
    say_left_out(run.left_out, run.notes)
    say(f"model: {run.path / 'model.safetensors'}")
