"""`camae train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Unpack

import typer

from camae.cli.console import say
from camae.cli.options import Data, with_options
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
    resume: Annotated[bool, typer.Option(help="continue a run found in --out")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", help="no live table")] = False,
    **reading: Unpack[ReadKeywords],
) -> None:
    """Train a CA-MAE."""
    import camae

    values = parse_settings(settings)
    if steps is not None:
        values["steps"] = steps
    if model is not None:
        values["model"] = model
    run = camae.train(data, out=out, config=config, resume=resume, quiet=quiet, **reading, **values)
    say(f"model: {run.path / 'model.safetensors'}")
