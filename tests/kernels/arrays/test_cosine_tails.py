"""Order statistics of pairwise cosines against a plain sort of the whole triangle."""

import numpy as np
import pytest

from camae.kernels.arrays import cosine_tails
from camae.kernels.arrays.cosine_tails import selection
from camae.kernels.arrays.cosine_tails.blocks import pair_values
from camae.kernels.arrays.cosine_tails.reference import order_statistics_reference


def _unit(n, d, dtype, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("collect", [20, selection.COLLECT])  # 20 forces the bins to be divided again
def test_order_statistics_are_those_of_the_sorted_triangle(monkeypatch, dtype, collect):
    monkeypatch.setattr(selection, "COLLECT", collect)
    x = _unit(301, 16, dtype)
    total = 301 * 300 // 2
    ranks = [0, 1, total // 20, total // 2, total - 1]
    exact = order_statistics_reference(x.astype(np.float64), ranks)
    got = cosine_tails.order_statistics(x, ranks, block=64)
    # A dot product of 16 terms of unit vectors is off by at most 16 eps; so is each order statistic.
    np.testing.assert_allclose(got, exact, rtol=0, atol=16 * np.finfo(dtype).eps)


def test_ties_cost_no_memory_and_pairs_have_the_bits_that_are_ranked(monkeypatch):
    monkeypatch.setattr(selection, "COLLECT", 10)
    x = np.zeros((200, 4))
    x[:, 0] = 1
    assert cosine_tails.order_statistics(x, [0, 500, 19_899], block=64).tolist() == [1.0, 1.0, 1.0]
    x = _unit(150, 8, np.float32)
    left, right = np.triu_indices(150, 1)
    values = np.sort(cosine_tails.cosines_of_pairs(x, right, left, block=64))
    assert (cosine_tails.order_statistics(x, range(0, len(values), 7), block=64) == values[::7]).all()


def test_a_rank_outside_the_pairs_is_an_error():
    with pytest.raises(ValueError, match=r"0\.\.2"):
        cosine_tails.order_statistics(np.eye(3), [3])


def test_finer_bins_for_many_pairs_change_nothing(monkeypatch):
    x = _unit(200, 12, np.float32)
    ranks = [5, 995, 10_000, 19_000]
    coarse = cosine_tails.order_statistics(x, ranks)
    monkeypatch.setattr(cosine_tails, "MANY_PAIRS", 1000)
    assert (cosine_tails.order_statistics(x, ranks) == coarse).all()


@pytest.mark.parametrize("case", ["random", "clustered", "sample misleads", "all equal"])
def test_windows_of_a_sample_change_nothing_but_time(monkeypatch, case):
    """Exact where windows hit, where they miss (every eighth row is unlike the rest) and where a tie overfills them."""
    monkeypatch.setattr(selection, "SAMPLED_ROWS", (16, 64))
    monkeypatch.setattr(selection, "COLLECT", 60_000)
    rng = np.random.default_rng(3)
    x = rng.normal(size=(400, 12))
    if case == "clustered":
        x += 3 * rng.normal(size=(5, 12))[np.arange(400) // 80]
    if case == "sample misleads":
        x[::8] = 1
    if case == "all equal":
        x[:] = 1
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    values = np.sort(np.concatenate(list(pair_values(x, 64))))
    ranks = [0, len(values) // 20, len(values) - 1 - len(values) // 20, len(values) - 1]
    assert (cosine_tails.order_statistics(x, ranks, block=64) == values[ranks]).all()
    pairs = selection.PairSelection(x, 64, 1 << 16)
    met = pairs.in_windows(np.array(ranks))
    assert (set(met) == set(ranks)) == (case in ("random", "clustered"))


@pytest.mark.parametrize("n", [40, 400])
@pytest.mark.parametrize("ranks", [[5], [5, 300], list(range(0, 600, 30))])
def test_chosen_pairs_of_a_pass_have_the_bits_of_a_pass_of_their_own(monkeypatch, n, ranks):
    """Windows (few ranks, many rows) and bins; pairs in any order, twice, and in every block."""
    monkeypatch.setattr(selection, "SAMPLED_ROWS", (16, 64))
    rng = np.random.default_rng(5)
    x = rng.normal(size=(n, 12)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    left, right = rng.integers(0, n, (2, 500))
    left, right = left[left != right], right[left != right]
    values, cosines = cosine_tails.order_statistics_and_pairs(x, ranks, left, right, block=64)
    assert (values == cosine_tails.order_statistics(x, ranks, block=64)).all()
    assert (cosines == cosine_tails.cosines_of_pairs(x, left, right, block=64)).all()
    exact = (x.astype(np.float64)[left] * x.astype(np.float64)[right]).sum(1)
    np.testing.assert_allclose(cosines, exact, atol=12 * np.finfo(np.float32).eps)
    none = cosine_tails.order_statistics_and_pairs(x, ranks, left[:0], right[:0], block=64)[1]
    assert len(none) == 0
