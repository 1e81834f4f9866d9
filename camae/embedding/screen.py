"""`camae.embed_screen`: a whole screen to Parquet, shard by shard, resumable, nothing twice and nothing lost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from camae.dataloader.datasets import read_manifest
from camae.dataloader.manifest import Manifest
from camae.embedding.default_model import resolve_model
from camae.embedding.encode import token_budget
from camae.embedding.ledger import claim, describe, is_done, shard_path, shard_rows
from camae.embedding.lock import merging, writing
from camae.embedding.ranks import rank_and_world
from camae.embedding.validate import check_budget, check_dtype, check_layers
from camae.embedding.windows import check_overlap
from camae.embedding.worker import Meter, ShardWorker, same_channels
from camae.embedding_table import by_well, read_table, write_table
from camae.errors import CamaeError
from camae.model.pooling import check_pool
from camae.progress import progress_bar

TILES = ("grid", "cover", "center")


def embed_screen(
    manifest: Manifest | str | Path,
    model: nn.Module | str | Path | None = None,
    out: str | Path = "emb",
    *,
    tiles: str = "grid",
    overlap: float = 0.0,
    pool: str = "mean",
    layers: int | Sequence[int] | None = None,
    level: str = "well",
    value_range: tuple[float, float] | None = None,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    sites_per_shard: int = 256,
    tokens_per_pass: int | None = None,
    rank: int | None = None,
    world: int | None = None,
    format: str | None = None,
    incomplete: str = "error",
    pattern: str | None = None,
    reader: str | None = None,
    quiet: bool = False,
) -> pd.DataFrame:
    """Embed every site of a screen and return the table of its wells.

    manifest: object, file, or a folder a reader knows. model: as in `camae.embed`.
    tiles: "grid" (non-overlapping model-sized tiles, as the paper embedded RxRx3), "cover" or "center";
        a site's vector is the mean over its tiles. Tiles in which a plane is constant are left out;
        the column Metadata_tiles says how many counted.
    pool: "mean" or "cls"; "per_channel" concatenates the channels (all sites must then have the same).
    layers: as in `camae.embed`; several are concatenated.
    level: "well" (mean over sites) or "site".
    device: where the model computes; default the GPU of this process, or the CPU where there is none.
    format, incomplete, pattern: how a folder is read, as in `camae.dataloader.read_manifest`.
    reader: image back-end, "native" (default: 8- and 16-bit), "tifffile" (also float) or "dali".
    sites_per_shard, tokens_per_pass: fixed in the ledger at the first start (tokens_per_pass by the memory of the
        device then), so that a resumed run packs the same batches and equals an uninterrupted one bitwise on a CPU
        (with as many threads).
        Other numbers give the same vectors within float32 rounding: 1e-5 for values of order 1.
    rank, world: this process embeds the shards rank, rank + world, ...; default what torchrun or SLURM says.

    Writes `sites/part-00000.parquet` ... , `ledger.json` and `wells.parquet` (or `sites.parquet`) into `out`. A
    killed run continues where it stopped. Of several ranks, the one that finds all shards there writes the table;
    the others return the sites they embedded. `table.attrs["complete"]` says which it is.
    Raises CamaeError when `out` belongs to another model, manifest or setting or is being written by another
    process, and for images that cannot be embedded, naming row, file and channel.
    """
    options = {name: value for name, value in locals().items() if name not in ("manifest", "model", "out")}
    net = resolve_model(model, device)
    if getattr(net, "adapts_to_plates", False):
        return _embed_by_plate(manifest, net, out, **options)
    job = prepare(
        manifest,
        net,
        out,
        device=device,
        level=level,
        tiles=tiles,
        overlap=overlap,
        pool=pool,
        layers=layers,
        value_range=value_range,
        dtype=dtype,
        sites_per_shard=sites_per_shard,
        tokens_per_pass=tokens_per_pass,
        reading={"format": format, "incomplete": incomplete, "pattern": pattern},
    )
    place = rank_and_world(rank, world)
    with writing(job.folder, *place):
        ledger = job.claim()
        worker = ShardWorker(job.model, job.manifest, job.folder, ledger, reader)
        mine = range(place[0], len(worker.rows), place[1])
        _run(worker, mine, quiet)
        table = job.merge()
        complete = table is not None
        if table is None:
            table = pd.concat([pd.DataFrame(), *(read_table(shard_path(job.folder, n))[0] for n in mine)])
    table.attrs["complete"] = complete
    return table


def _embed_by_plate(
    manifest: Manifest | str | Path, model: Any, out: str | Path, *, level: str, **options: Any
) -> pd.DataFrame:
    """Each plate by the model adapted to it (`adapted_to`); one table in `out`, plates in `plates/`."""
    reading = {name: options.pop(name) for name in ("format", "incomplete", "pattern")}
    sites, folder = read_manifest(manifest, **reading), Path(out)
    plates, tables = sites.plates(), []
    for number, plate in enumerate(np.unique(plates)):
        part = sites.select(plates == plate)
        adapted = model.adapted_to(part, value_range=options["value_range"], reader=options["reader"])
        tables.append(
            embed_screen(part, adapted, folder / "plates" / f"{number:05d}", level=level, **options)
        )
    table = pd.concat(tables, ignore_index=True)
    about = {"model": model.config.name, "statistics": "re-estimated on each plate"}
    write_table(folder / f"{level}s.parquet", table, about)
    return table


def _run(worker: ShardWorker, shards: Sequence[int], quiet: bool) -> None:
    """Embed the shards that are not there yet, under a live line of sites, crops/s, time left and waiting."""
    missing = [n for n in shards if not is_done(worker.folder, n, worker.ledger)]
    total = sum(len(worker.rows[n]) for n in shards)
    done = total - sum(len(worker.rows[n]) for n in missing)
    with progress_bar(disable=quiet) as bar:
        task = bar.add_task("embedding sites", total=total, completed=done, status="")

        def show(meter: Meter) -> None:
            bar.update(task, completed=done + meter.sites, status=str(meter))

        worker.run(missing, show)


class Job:
    """A screen to embed: model, sites, output folder, and what describes the output."""

    def __init__(self, model: Any, manifest: Manifest, folder: Path, about: dict[str, Any], level: str):
        self.model, self.manifest, self.folder, self.about, self.level = model, manifest, folder, about, level

    def claim(self, budget: int | None = None) -> dict[str, Any]:
        """The ledger of the output folder, written at the first start with `budget` or what the memory holds."""
        with merging(self.folder):
            return claim(self.folder, self.about, budget or token_budget(self.model))

    def merge(self) -> pd.DataFrame | None:
        """Write and return the table when all shards are there, else None."""
        with merging(self.folder):
            ledger = claim(self.folder, self.about, 0)
            numbers = range(len(shard_rows(ledger)))
            if not all(is_done(self.folder, n, ledger) for n in numbers):
                return None
            for leftover in (self.folder / "sites").glob(".part-*"):
                leftover.unlink(missing_ok=True)
            table = pd.concat([read_table(shard_path(self.folder, n))[0] for n in numbers])
            table = by_well(table) if self.level == "well" else table.reset_index(drop=True)
            write_table(self.folder / f"{self.level}s.parquet", table, ledger)
        return table


def prepare(
    manifest: Manifest | str | Path,
    model: nn.Module | str | Path | None,
    out: str | Path,
    *,
    device: str | torch.device | None,
    level: str,
    reading: dict[str, Any],
    **settings: Any,
) -> Job:
    """Read manifest and model and check every setting before anything is written."""
    check_pool(settings["pool"])
    check_overlap(settings["overlap"])
    check_budget(settings["tokens_per_pass"])
    if settings["tiles"] not in TILES:
        raise CamaeError(f"tiles {settings['tiles']!r} is not 'grid', 'cover' or 'center'")
    if level not in ("well", "site"):
        raise CamaeError(f"level {level!r} is not 'well' or 'site'")
    if settings["sites_per_shard"] < 1:
        raise CamaeError(f"sites_per_shard {settings['sites_per_shard']} is not above 0")
    sites = read_manifest(manifest, **reading)
    if level == "well" and "Metadata_Well" not in sites.table:
        raise CamaeError("the manifest has no column Metadata_Well; use level='site'")
    if settings["pool"] == "per_channel" and not same_channels(sites):
        raise CamaeError(
            "pool='per_channel' needs sites with the same channels; select them or use pool='mean'"
        )
    net = resolve_model(model, device)
    dtype, layers, span = check_dtype(settings["dtype"]), settings["layers"], settings["value_range"]
    settings |= {
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "layers": list(check_layers(layers, getattr(net.config, "depth", 0))) or None,
        "value_range": [float(v) for v in span] if span else None,
    }
    return Job(net, sites, Path(out), describe(net, sites, settings), level)
