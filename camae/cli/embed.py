"""`camae embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Unpack

import typer

from camae.cli.console import say, say_left_out
from camae.cli.options import DATA_HELP, with_options
from camae.embedding.config import EmbedConfig, EmbedOptions
from camae.files import output_folder

_STOPPED = 130  # as shells have it after Ctrl-C


@with_options(EmbedConfig)
def embed(
    out: Annotated[Path, typer.Option(help="output folder; a run found there is continued")],
    data: Annotated[str | None, typer.Argument(help=DATA_HELP)] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="run, checkpoint, model file or hf://owner/name@revision; default the one CAMAE_MODEL names"
        ),
    ] = None,
    **options: Unpack[EmbedOptions],
) -> None:
    """Embed a screen to Parquet."""
    import camae
    from camae.embedding.ranks import rank_and_world
    from camae.embedding.store.gallery_files import FOLDER
    from camae.embedding.store.shards import table_path

    config = EmbedConfig.of(**options)
    output_folder(out, data)
    manifest = config.read(data)
    try:
        table = camae.embed_screen(manifest, model, out, config=config.of_manifest())
    except KeyboardInterrupt:
        say(f"stopped: shards in {out} are whole; the same command goes on from there")
        raise typer.Exit(_STOPPED) from None
    path = table_path(out, config.level)
    say_left_out(manifest.left_out, manifest.notes)
    if config.jump_lite is not None:
        say(f"in the Gallery's form, a file a site: {out / FOLDER}")
    if not table.attrs["complete"]:
        rank, world = rank_and_world(config.rank, config.world)
        say(f"{len(table)} sites embedded as rank {rank} of {world}; the last rank writes {path}")
        return
    files = [path, path.with_suffix(".h5ad")] if config.anndata else [path]
    say(f"{len(table)} {config.level}s embedded: {', '.join(map(str, files))}")
