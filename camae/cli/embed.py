"""`camae embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Unpack

import typer

from camae.cli.console import say
from camae.cli.options import Data, with_options
from camae.embedding.config import EmbedConfig, EmbedOptions


@with_options(EmbedConfig)
def embed(
    data: Data,
    out: Annotated[Path, typer.Option(help="output folder; a run found there is continued")],
    model: Annotated[
        str | None, typer.Option(help="run, checkpoint or model file; default the one CAMAE_MODEL names")
    ] = None,
    **options: Unpack[EmbedOptions],
) -> None:
    """Embed a screen to Parquet."""
    import camae
    from camae.embedding.ranks import rank_and_world
    from camae.embedding.store.shards import table_path

    config = EmbedConfig.of(**options)
    table, path = camae.embed_screen(data, model, out, config=config), table_path(out, config.level)
    if not table.attrs["complete"]:
        rank, world = rank_and_world(config.rank, config.world)
        say(f"{len(table)} sites embedded as rank {rank} of {world}; the last rank writes {path}")
        return
    files = [path, path.with_suffix(".h5ad")] if config.anndata else [path]
    say(f"{len(table)} {config.level}s embedded: {', '.join(map(str, files))}")
