"""`camae.embed_screen`: a whole screen to Parquet, shard by shard, resumable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
import pandas as pd

from camae.dataloader.manifest import Manifest
from camae.embedding.best_layer import with_chosen_layer
from camae.embedding.config import EmbedConfig, EmbedOptions
from camae.embedding.default_model import ModelSource, resolve_model
from camae.embedding.export import to_anndata
from camae.embedding.job import EmbedJob, prepare
from camae.embedding.ranks import rank_and_world
from camae.embedding.ray_actors import write_shards_with_ray
from camae.embedding.stopping import stop_after_pass
from camae.embedding.store.gallery_files import GalleryFiles
from camae.embedding.store.ledger import Ledger
from camae.embedding.store.shards import read_shards, shard_states, table_path
from camae.embedding.worker import Meter, ShardWorker
from camae.embedding_table import write_table
from camae.errors import CamaeError
from camae.files import output_folder
from camae.inference.accelerate import accelerate
from camae.inference.bag_of_channels import BagOfChannels
from camae.inference.imputed_channels import ImputedChannels
from camae.locks import writing
from camae.model.backends import using_backends
from camae.model.ca_mae import CAMAE
from camae.model.interface import Model, PlateAdaptive
from camae.progress import progress_bar


def embed_screen(
    manifest: Manifest | str | Path | None = None,
    model: ModelSource | None = None,
    out: str | Path = "emb",
    *,
    config: EmbedConfig | None = None,
    **options: Unpack[EmbedOptions],
) -> pd.DataFrame:
    """Embed every site of a screen and return the table of its wells.

    manifest: object, file, or a folder a reader knows; None beside jump_lite. model: as in `camae.embed`.
    options: the fields of `EmbedConfig`, which change `config` where it is given: tiles, overlap, pool, impute, layers,
        value_range, dtype, level, backends; linear, compile, bag_of_channels; sites_per_shard, tokens_per_pass; device,
        rank, world, ray_workers, ray_gpus, ray_cpus, reader, threads; anndata, jump_lite, quiet; format, incomplete,
        pattern, channels, z, time, variant, metadata, negative_controls.

    A site's vector is the mean over its tiles (by default the non-overlapping ones with which the paper embedded
    RxRx3). Tiles in which a plane is constant are left out; the column Metadata_tiles says how many counted.
    "per_channel" puts the channels side by side (all sites must have the same), several layers too.
    sites_per_shard and tokens_per_pass (default by the memory of the device) are fixed in the ledger at the first
    start, so that a resumed run packs the same batches and equals an uninterrupted one bitwise on a CPU (with as
    many threads). Other numbers give the same vectors within float32 rounding: 1e-5 for values of order 1.
    This process embeds the shards rank, rank + world, ... of several, or Ray actors embed all.

    Writes `sites/part-00000.parquet` ... , `ledger.json`, `wells.parquet` (or `sites.parquet`) and, where reading the
    screen left something out, `left_out.csv` into `out`; with jump_lite also `workspace_dl/embeddings/...`, a file for
    each site as the Cell Painting Gallery has them (`store.gallery_files`). A killed run continues where it stopped.
    Shards say in which state (size and time) they found the images: those whose images have changed since are embedded
    anew, with a warning. Ctrl-C stops after the pass that is being computed: KeyboardInterrupt; a second one stops at
    once. Of several ranks, the one that finds all shards there writes the table; the others return the sites they
    embedded. `table.attrs["complete"]` says which it is.
    Raises CamaeError when `out` belongs to another model, manifest or option or is being written by another
    process, and for images that cannot be embedded, naming row, file and channel.
    """
    config, folder = EmbedConfig.of(config, **options), output_folder(out, manifest)
    source = resolve_model(model, config.device)
    config = with_chosen_layer(config, source)
    if config.impute:
        manifest = config.read(manifest)
        config = config.of_manifest()
        _check_lacking(manifest, config.impute)
    net = _in_form(source, config, manifest.channels if isinstance(manifest, Manifest) else ())
    with using_backends(net, config.backends):
        if isinstance(net, PlateAdaptive) and net.adapts_to_plates:
            table = _embed_by_plate(manifest, net, folder, config)
        else:
            table = _embed(prepare(manifest, net, folder, config), model)
    if config.anndata and table.attrs["complete"]:
        path = table_path(folder, config.level)
        to_anndata(path, path.with_suffix(".h5ad"))
    return table


def _check_lacking(manifest: Manifest, impute: Sequence[str]) -> None:
    """Raise CamaeError for a channel to be imputed that every site has."""
    for name in impute:
        if name in manifest.channels and (manifest.table[name] != "").all():
            raise CamaeError(f"all {len(manifest):,} sites have the channel {name!r}; leave it out of impute")


def _in_form(model: Model, config: EmbedConfig, channels: Sequence[str]) -> Model:
    """The model as asked for: rewritten for speed, seeing one channel at a time, imputing others, or as it is.

    channels: of the screen, in the order of their vectors.
    """
    if not config.rewritten:
        return model
    if not isinstance(model, CAMAE):
        raise CamaeError(
            f"linear, compile, bag_of_channels and impute need a CA-MAE, not a {type(model).__name__}"
        )
    if config.linear is not None or config.compile:
        model = accelerate(model, config.linear or "float32", compile=config.compile)
    if config.impute:
        return ImputedChannels(model, config.impute, channels)
    return BagOfChannels(model) if config.bag_of_channels else model


def _embed(job: EmbedJob, source: ModelSource | None) -> pd.DataFrame:
    """The table of a job, or of this rank's shards, by this process or by Ray actors. source: the model as given."""
    config = job.config
    rank, world = (0, 1) if config.ray_workers else rank_and_world(config.rank, config.world)
    with writing(job.folder, rank, world):
        ledger = job.claim()
        mine = range(rank, len(ledger.shard_rows), world)
        found = shard_states(job.folder, ledger, job.inputs, mine)
        found.warn(job.folder, ledger, job.inputs)
        try:
            if config.ray_workers:
                write_shards_with_ray(job, ledger, found.unwritten, source)
            else:
                _write_shards(job, ledger, mine, found.unwritten)
        except CamaeError:
            if world == 1:
                job.withdraw()
            raise
        table = job.merge()
        complete = table is not None
        if table is None:
            if config.ray_workers:
                raise CamaeError(f"{job.folder}: not all shards were written; run it again to write the rest")
            table = read_shards(job.folder, mine)
        else:
            job.manifest.left_out.write(job.folder)
        if job.gallery is not None:
            _write_gallery_files(job, job.gallery, ledger, mine)
    table.attrs["complete"] = complete
    return table


def _write_shards(job: EmbedJob, ledger: Ledger, shards: Sequence[int], missing: Sequence[int]) -> None:
    """Embed the missing ones of some shards, under a live line of sites, crops/s, time left and waiting.

    Ctrl-C stops after the pass that is being computed: KeyboardInterrupt. A second one stops at once.
    """
    config = job.config
    worker = ShardWorker(
        job.model, job.manifest, job.folder, ledger, config.reader, config.threads, job.inputs
    )
    total = sum(len(worker.rows[n]) for n in shards)
    done = total - sum(len(worker.rows[n]) for n in missing)
    with stop_after_pass() as stopped, progress_bar(disable=config.quiet) as bar:
        task = bar.add_task("embedding sites", total=total, completed=done, status="")

        def show(meter: Meter) -> None:
            bar.update(task, completed=done + meter.sites, status=str(meter))
            if stopped.is_set():
                raise KeyboardInterrupt

        worker.run(missing, show)


def _write_gallery_files(job: EmbedJob, files: GalleryFiles, ledger: Ledger, shards: Sequence[int]) -> None:
    """The sites of these shards in the Gallery's form, under a line of how many are done."""
    with progress_bar(disable=job.config.quiet, transient=True) as bar:
        task = bar.add_task("writing the Gallery's files", total=None, status="")
        files.write(
            job.folder, ledger, shards, lambda done, total: bar.update(task, completed=done, total=total)
        )


def _embed_by_plate(
    data: Manifest | str | Path | None, model: Model, out: Path, config: EmbedConfig
) -> pd.DataFrame:
    """Each plate by the model adapted to it; one table in `out`, plates in `plates/`."""
    assert isinstance(model, PlateAdaptive)
    sites, config = config.read(data), config.of_manifest()
    plates, tables = sites.plates(), []
    for number, plate in enumerate(np.unique(plates)):
        part = sites.select(plates == plate)
        adapted = model.adapted_to(part, value_range=config.value_range, reader=config.reader)
        job = prepare(part, adapted, out / "plates" / f"{number:05d}", config, home=out)
        tables.append(_embed(job, adapted))
    table = pd.concat(tables, ignore_index=True)
    table.attrs["complete"] = all(t.attrs["complete"] for t in tables)
    if table.attrs["complete"]:
        about: dict[str, object] = {
            "model": model.config.name,
            "statistics": "re-estimated on each plate",
        }
        about |= {"origin": dict(model.origin)} if model.origin else {}
        write_table(table_path(out, config.level), table, about)
        sites.left_out.write(out)
    return table
