"""Ray actors on this machine, one of them killed in the middle: the table of a single process."""

import os
import signal
import sys

import pandas as pd
import pytest
import torch

import camae
from camae.embedding import EmbedConfig
from camae.embedding.default_model import resolve_model
from camae.embedding.job import prepare
from camae.embedding.ray_actors import RayActor, write_shards_with_ray
from camae.errors import CamaeError
from camae.locks import writing

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'camae[ray]'")


@pytest.fixture
def cluster(tmp_path):
    """Two CPUs, a small object store, no dashboard."""
    # The importing process is pytest, in whose import mode test modules have no name that a worker could import.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(
        num_cpus=2,
        object_store_memory=80 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    # An actor with one CPU computes on one thread, which decides the order of sums in a product.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    ray.shutdown()


class DyingActor(RayActor):
    """Kills its own process, once, after its second shard is half done: read and encoded, not written."""

    def __call__(self, batch):
        marker = self.worker.folder / "killed"
        done = len(list((self.worker.folder / "sites").glob("part-*.parquet")))
        if done >= 2 and not marker.exists():
            marker.write_text(str(os.getpid()))

            def die(*_):
                os.kill(os.getpid(), signal.SIGKILL)

            self.worker._write = die
        return super().__call__(batch)


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_killed_worker_changes_nothing(long_screen, model, model_file, tmp_path, cluster):
    options = {"sites_per_shard": 4, "tokens_per_pass": 100}
    whole = camae.embed_screen(long_screen, model, tmp_path / "one", quiet=True, device="cpu", **options)
    config = EmbedConfig.of(ray_workers=2, **options)
    job = prepare(long_screen, resolve_model(model_file, "cpu"), tmp_path / "ray", config)
    with writing(job.folder):
        write_shards_with_ray(job, job.claim(), range(len(job.claim().shard_rows)), model_file, DyingActor)
        table = job.merge()
    assert int((tmp_path / "ray" / "killed").read_text()) != os.getpid()
    pd.testing.assert_frame_equal(table, whole, check_exact=True)
    for shard in sorted((tmp_path / "one" / "sites").iterdir()):
        assert (tmp_path / "ray" / "sites" / shard.name).read_bytes() == shard.read_bytes()


@pytest.mark.timeout(600)
def test_actors_embed_a_screen(screen, model, tmp_path, cluster):
    """A model in memory, through the public function; the second call finds all shards."""
    whole = camae.embed_screen(screen, model, tmp_path / "one", quiet=True, device="cpu")
    for _ in range(2):
        table = camae.embed_screen(screen, model, tmp_path / "ray", ray_workers=1)
        pd.testing.assert_frame_equal(table, whole, check_exact=True)
        assert table.attrs["complete"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"ray_workers": -1}, "ray_workers -1 is not 0 or more"),
        ({"ray_workers": 1, "rank": 0, "world": 2}, "leave out device, rank and world"),
        ({"ray_workers": 1, "compile": True}, "Ray workers load the model as it is"),
        ({"ray_worker": 1}, "unknown embedding options ray_worker; known are anndata, "),
    ],
)
def test_wrong_options_are_one_sentence(screen, model, tmp_path, options, sentence):
    with pytest.raises(CamaeError, match=sentence):
        camae.embed_screen(screen, model, tmp_path / "emb", **options)
