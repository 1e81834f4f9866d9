"""A screen over many machines: a Ray Data pipeline whose actors are the same worker as on one machine.

Each row of the pipeline is the number of a shard; an actor writes the shard whole, so that a shard whose actor died
is simply done again by another, and the output equals that of a single process.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from camae.dataloader.manifest import Manifest
from camae.embedding.default_model import default_device, resolve_model
from camae.embedding.encode import MOST_TOKENS
from camae.embedding.ledger import is_done, shard_rows
from camae.embedding.lock import writing
from camae.embedding.screen import prepare
from camae.embedding.worker import ShardWorker
from camae.errors import CamaeError, MissingBackendError

# Tables of numbers of shards are all that passes through Ray's store.
_STORE_BYTES = 100 * 2**20


class RayWorker:
    """One actor: loads the model once, then writes the shards it is handed."""

    def __init__(
        self, model: Any, manifest: Manifest, folder: str, ledger: dict[str, Any], options: dict[str, Any]
    ):
        net = resolve_model(model, default_device())
        self.worker = ShardWorker(net, manifest, folder, ledger, **options)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """batch["shard"]: numbers; the rows written come back beside them."""
        numbers = [int(n) for n in batch["shard"]]
        self.worker.run(n for n in numbers if not is_done(self.worker.folder, n, self.worker.ledger))
        return {"shard": batch["shard"], "sites": [len(self.worker.rows[n]) for n in numbers]}


def embed_screen_ray(
    manifest: Manifest | str | Path,
    model: nn.Module | str | Path | None = None,
    out: str | Path = "emb",
    *,
    workers: int,
    gpus_per_worker: float = 0,
    cpus_per_worker: float = 1,
    worker: type = RayWorker,
    format: str | None = None,
    incomplete: str = "error",
    pattern: str | None = None,
    reader: str | None = None,
    level: str = "well",
    **settings: Any,
) -> pd.DataFrame:
    """`camae.embed_screen` with `workers` Ray actors: the same folder, files and table.

    workers: actors; gpus_per_worker, cpus_per_worker: what Ray sets aside for each (1 GPU each on GPU machines).
    Uses the Ray cluster this process is connected to or RAY_ADDRESS names, else a local one. Images and `out` must
    be on storage that all machines share; a model given by path too. settings: tiles, overlap, pool, layers,
    value_range, dtype, sites_per_shard, tokens_per_pass (give it for GPUs with less than 40 GB), as in `embed_screen`.
    """
    try:
        import ray
    except ImportError:
        raise MissingBackendError(
            "embedding over several machines needs Ray, which is not installed: pip install 'camae[ray]'"
        ) from None
    if workers < 1:
        raise CamaeError(f"workers {workers} is not above 0")
    defaults = {
        "tiles": "grid",
        "overlap": 0.0,
        "pool": "mean",
        "layers": None,
        "value_range": None,
        "dtype": None,
        "sites_per_shard": 256,
        "tokens_per_pass": None,
    }
    if unknown := set(settings) - set(defaults):
        raise CamaeError(f"unknown settings {sorted(unknown)}; known ones are {', '.join(defaults)}")
    reading = {"format": format, "incomplete": incomplete, "pattern": pattern}
    job = prepare(manifest, model, out, device="cpu", level=level, reading=reading, **(defaults | settings))
    if not ray.is_initialized():
        local: dict[str, Any] = {"object_store_memory": _STORE_BYTES, "include_dashboard": False}
        ray.init(log_to_driver=False, **({} if "RAY_ADDRESS" in os.environ else local))
    with writing(job.folder):
        ledger = job.claim(MOST_TOKENS["cuda"] if gpus_per_worker else None)
        missing = [n for n in range(len(shard_rows(ledger))) if not is_done(job.folder, n, ledger)]
        if missing:
            # A path is loaded by every actor itself; a model in memory travels once, through Ray's store.
            shared = str(Path(model).absolute()) if isinstance(model, str | Path) else job.model
            pipeline = ray.data.from_items([{"shard": n} for n in missing]).map_batches(
                worker,
                fn_constructor_args=(
                    shared,
                    job.manifest,
                    str(job.folder.absolute()),
                    ledger,
                    {"reader": reader},
                ),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=workers),
                num_cpus=cpus_per_worker,
                num_gpus=gpus_per_worker,
            )
            pipeline.take_all()
        table = job.merge()
    if table is None:
        raise CamaeError(f"{job.folder}: not all shards were written; run it again to write the rest")
    return table
