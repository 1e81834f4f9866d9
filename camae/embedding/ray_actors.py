"""Ray actors: a screen over many machines, each actor the same worker as on one.

A Ray Data pipeline hands out numbers of shards; an actor writes the shard whole, so that a shard whose actor died
is done again by another, and the output equals that of a single process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from camae.dataloader.manifest import Manifest
from camae.embedding.config import EmbedConfig
from camae.embedding.default_model import ModelSource, default_device, resolve_model
from camae.embedding.job import EmbedJob
from camae.embedding.store.ledger import Ledger
from camae.embedding.store.shards import shard_states
from camae.embedding.worker import ShardWorker
from camae.errors import MissingBackendError
from camae.model.hub import is_hub_name, pinned

# Tables of numbers of shards are all that passes through Ray's store.
_STORE_BYTES = 100 * 2**20


class RayActor:
    """Ray actor: loads the model once, then writes the shards it is handed."""

    def __init__(
        self, model: ModelSource, manifest: Manifest, folder: Path, ledger: Ledger, config: EmbedConfig
    ):
        net = resolve_model(model, default_device())
        self.worker = ShardWorker(net, manifest, folder, ledger, config.reader, config.threads)

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """batch["shard"]: numbers; the rows written come back beside them."""
        numbers = [int(n) for n in batch["shard"]]
        worker = self.worker
        worker.run(shard_states(worker.folder, worker.ledger, worker.inputs, numbers).unwritten)
        return {"shard": batch["shard"], "sites": np.array([len(worker.rows[n]) for n in numbers])}


def write_shards_with_ray(
    job: EmbedJob,
    ledger: Ledger,
    shards: Sequence[int],
    model: ModelSource | None,
    actor: type[RayActor] = RayActor,
) -> None:
    """Write these shards with the job's number of Ray actors.

    model: as the user gave it: a path or a name of the hub is loaded by every actor itself.
    Uses the Ray cluster this process is connected to or RAY_ADDRESS names, else a local one. Images and the output
    folder must be on storage that all machines share; a model given by path too.
    Raises MissingBackendError where Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise MissingBackendError(
            "embedding over several machines needs Ray, which is not installed: pip install 'camae[ray]'"
        ) from None
    config = job.config
    if not ray.is_initialized():
        if "RAY_ADDRESS" in os.environ:
            ray.init(log_to_driver=False)
        else:
            ray.init(log_to_driver=False, object_store_memory=_STORE_BYTES, include_dashboard=False)
    if not shards:
        return
    shared: ModelSource = job.model
    if isinstance(model, str | Path):
        shared = pinned(job.model.origin) if is_hub_name(model) else Path(model).absolute()
    pipeline = ray.data.from_items([{"shard": n} for n in shards]).map_batches(
        actor,
        fn_constructor_args=(shared, job.manifest, job.folder.absolute(), ledger, config),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=config.ray_workers),
        num_cpus=config.ray_cpus,
        num_gpus=config.ray_gpus,
    )
    pipeline.take_all()
