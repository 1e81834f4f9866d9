"""`camae evaluate`: which block to embed with, and which channel can be spared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camae.cli.console import say, say_left_out, say_table
from camae.cli.options import Data, with_options
from camae.evaluate.config import ChannelsConfig, EvaluateConfig

if TYPE_CHECKING:
    import pandas as pd

Out = Annotated[Path, typer.Option(help="output folder; a run found there is continued")]
ModelName = Annotated[
    str | None,
    typer.Option(
        help="run, checkpoint, model file or hf://owner/name@revision; default the one CAMAE_MODEL names"
    ),
]
_IN_THE_FILE = ("_se", "chance", "rank")


@with_options(EvaluateConfig)
def layers(data: Data, out: Out = Path("layers"), model: ModelName = None, **options: Any) -> None:
    """Score all encoder blocks on a labeled screen in one pass, and keep the best with the model."""
    from camae import evaluate

    _say(evaluate.layers(data, model, out, config=EvaluateConfig.of(**options)), out / "layers.csv")


@with_options(ChannelsConfig)
def channels(data: Data, out: Out = Path("channels"), model: ModelName = None, **options: Any) -> None:
    """Score embeddings of a labeled screen with all channels and without each."""
    from camae import evaluate

    _say(evaluate.channels(data, model, out, config=ChannelsConfig.of(**options)), out / "channels.csv")


def _say(table: pd.DataFrame, path: Path) -> None:
    """Print the scores and the notes; standard errors, chance and ranks stay in the file."""
    shown = [name for name in table.columns if not name.endswith(_IN_THE_FILE)]
    shown = [name for name in shown if table[name].dtype != bool or table[name].any()]
    rows = ([_cell(value) for value in values] for values in table[shown].itertuples(index=False))
    say_table(rows, [name.replace("_", " ") for name in shown])
    say_left_out(table.attrs["left_out"], table.attrs["notes"])
    say(f"{path}\n{path.with_suffix('.png')}")


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    if value != value:  # no such value for this row
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
