"""`camae report`, `camae runs compare` and `camae convert`: trained runs and model files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from camae.cli.console import say, say_table


def report(
    run: Annotated[list[Path], typer.Argument(help="run folder; several stand one below the other")],
    out: Annotated[Path | None, typer.Option(help="HTML file; default report.html in the first run")] = None,
    title: Annotated[str | None, typer.Option(help="of the page")] = None,
) -> None:
    """Write the HTML report of a run folder, or of several."""
    import camae

    say(camae.report(run, out, title=title))


def compare(
    runs: Annotated[list[Path], typer.Argument(help="run folders")],
    out: Annotated[Path | None, typer.Option(help="folder for compare.csv and curves.png")] = None,
) -> None:
    """Losses, speed and differing settings of runs, side by side."""
    from camae.training.compare_runs import compare_runs

    found = compare_runs(runs, out)
    rows = (
        [name, *(f"{v:.4g}" if isinstance(v, float) else v for v in values)]
        for name, values in found.iterrows()
    )
    say_table(rows, ["quantity", *found.columns])
    if out is not None:
        say(f"{out / 'compare.csv'}\n{out / 'curves.png'}")


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="released weights, a run folder, a checkpoint, a model file, or hf://owner/name@revision"
        ),
    ],
    destination: Annotated[Path, typer.Argument(help="safetensors file or folder to write")],
    bias_layout: Annotated[
        str | None, typer.Option(help="of released weights: 'timm<=1.0.24' (default) or 'mlp'")
    ] = None,
    channels: Annotated[
        list[str] | None,
        typer.Option(
            "--channel", help="name of a channel of released weights, again for each, in their order"
        ),
    ] = None,
) -> None:
    """Write a model, released weights among them, as one safetensors file with its configuration."""
    from camae.model import weights

    given: dict[str, object] = {"bias_layout": bias_layout, "channels": channels}
    changes = {name: value for name, value in given.items() if value}
    say(f"model: {weights.convert(source, destination, **changes)}")
