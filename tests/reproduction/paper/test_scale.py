"""bench/SCALE.md is what its calculator says, and the calculator agrees with figures worked out by hand."""

import re
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[3] / "bench"


@pytest.fixture(scope="module")
def scale(bench_module):
    return bench_module("scale")


def test_page_is_the_calculators_with_the_measurement_it_names(scale):
    page = (BENCH / "SCALE.md").read_text()
    read = float(re.search(r"decoding, ([\d.]+) CPU-ms per crop", page)[1])
    assert page == scale.document(read=read / 1e3)
    assert 0.3 < scale.read_seconds_per_crop() * 1e3 / read < 3  # rows measured since are of the same order


def test_sizes_of_rxrx3(scale):
    work = scale.Work()
    assert work.crops_embedded == 142_214_144  # 2,222,096 x 64: the paper's "approximately 140 million"
    # 2,222,096 x 6 x 2048^2 x 2 bytes = 111.8 TB, half of it stored
    assert work.stored_bytes == pytest.approx(55.92e12, rel=1e-3)


def test_embedding_by_hand(scale):
    """L/16 embeds at 1161 GFLOP a crop: 142.2 M crops at 40 % of 989 TFLOP/s take 417,000 s of one GPU."""
    cost = scale.embedding_cost(scale.Work(), scale.EMBEDDING[2], scale.Site(), 1, 4e-3)
    assert cost.compute == pytest.approx(142.214144e6 * 1161.4e9 / (0.4 * 989e12), rel=1e-3)
    assert cost.reading == pytest.approx(142.214144e6 * 4e-3 / 16)
    assert cost.storage == pytest.approx(55.92e12 / 10e9, rel=1e-3)
    assert cost.bound == "GPU"
    assert cost.gpu_hours == pytest.approx(cost.compute / 3600)


def test_more_gpus_take_less_time_until_the_store_bounds(scale):
    work, shape, site = scale.Work(), scale.EMBEDDING[0], scale.Site()
    costs = [scale.embedding_cost(work, shape, site, n, 1e-4) for n in (1, 8, 128, 1024)]
    assert [c.seconds for c in costs] == sorted((c.seconds for c in costs), reverse=True)
    assert costs[-1].bound == "storage"
    assert costs[-1].gpu_hours > costs[0].gpu_hours  # GPUs that wait cost as much as those that work


def test_training_by_hand(scale):
    work, site = scale.Work(), scale.Site()
    cost = scale.training_cost(work, scale.TRAINING[0], site, 8, 4e-3)
    # B/16: 86 M parameters, bf16; 222.2 M crops in batches of 16,384; 2 x 7/8 of the bytes at 25 GB/s
    steps = 222_209_600 / 16_384
    assert cost.network == pytest.approx(steps * 1.75 * 2 * 86e6 / 25e9, rel=0.03)
    assert scale.training_cost(work, scale.TRAINING[0], site, 1, 4e-3).network == 0


def test_a_missing_measurement_is_named(scale, tmp_path):
    with pytest.raises(SystemExit, match="no measured row read_crops"):
        scale.read_seconds_per_crop(tmp_path)
