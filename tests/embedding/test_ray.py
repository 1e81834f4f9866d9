"""A real local Ray of two CPU workers, one of them killed in the middle: the table of a single process."""

import os
import signal
import sys

import pandas as pd
import pytest
import torch

import camae
from camae.embedding.ray_actors import RayWorker, embed_screen_ray
from camae.errors import CamaeError

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


class DyingWorker(RayWorker):
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
    table = embed_screen_ray(
        long_screen, model_file, tmp_path / "ray", workers=2, worker=DyingWorker, **options
    )
    assert int((tmp_path / "ray" / "killed").read_text()) != os.getpid()
    pd.testing.assert_frame_equal(table, whole, check_exact=True)
    for shard in sorted((tmp_path / "one" / "sites").iterdir()):
        assert (tmp_path / "ray" / "sites" / shard.name).read_bytes() == shard.read_bytes()


def test_wrong_settings_are_one_sentence(screen, model, tmp_path):
    with pytest.raises(CamaeError, match="workers 0 is not above 0"):
        embed_screen_ray(screen, model, tmp_path / "emb", workers=0)
    with pytest.raises(CamaeError, match=r"unknown settings \['tile'\]"):
        embed_screen_ray(screen, model, tmp_path / "emb", workers=1, tile="grid")
