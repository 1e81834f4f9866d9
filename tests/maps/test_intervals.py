"""Intervals of recall: known special cases, scipy, a direct double sum over pairs, and their coverage."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from camae import maps
from camae.maps.intervals import difference_interval, related_groups, share_interval, spread, student_t

COVERAGE = runpy.run_path(str(Path(__file__).parents[2] / "bench" / "coverage.py"))


def _cliques(number, size=4):
    return np.array(
        [
            (a, b)
            for start in range(0, number, size)
            for a in range(start, start + size)
            for b in range(a + 1, start + size)
        ]
    )


def test_student_t_is_that_of_scipy():
    for freedom in (1, 1.5, 2, 3.7, 9, 60, 1000):
        assert student_t(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=1e-9)
    assert student_t(1e7) == pytest.approx(1.96, abs=0.003)


def test_groups_are_cliques_and_random_pairs_are_apart():
    cliques = _cliques(20)
    assert related_groups(cliques).tolist() == np.repeat(np.arange(5), 4).tolist()
    # A ring: each perturbation has two partners, and two neighbors share themselves alone, 2 of 4: not above a half.
    ring = np.array([(k, (k + 1) % 12) for k in range(12)])
    assert len(np.unique(related_groups(ring))) == 12
    # Chains of three: 2 of 3.
    chains = np.array([(3 * k + a, 3 * k + a + 1) for k in range(5) for a in (0, 1)])
    assert related_groups(chains).tolist() == np.repeat(np.arange(5), 3).tolist()
    # One clique alone tells no variance: each perturbation is a group.
    assert related_groups(_cliques(4)).tolist() == [0, 1, 2, 3]
    # The definition, by sets.
    rng = np.random.default_rng(0)
    index = np.unique(np.sort(rng.integers(0, 60, (150, 2)), axis=1), axis=0)
    index = np.unique(index[index[:, 0] != index[:, 1]], return_inverse=True)[1].reshape(-1, 2)
    partners = [{k} for k in range(index.max() + 1)]
    for a, b in index:
        partners[a].add(b)
        partners[b].add(a)
    group = list(range(len(partners)))
    for a, b in index.tolist():
        if len(partners[a] & partners[b]) > 0.5 * len(partners[a] | partners[b]):
            group = [group[a] if g == group[b] else g for g in group]
    found = related_groups(index)
    same = np.equal.outer(group, group)
    np.testing.assert_array_equal(np.equal.outer(found, found), same)


def test_groups_beyond_one_block_of_columns(monkeypatch):
    monkeypatch.setattr("camae.maps.intervals._COLUMNS", 128)
    assert related_groups(_cliques(600)).tolist() == np.repeat(np.arange(150), 4).tolist()


def test_spread_of_cliques_is_the_jackknife_over_cliques():
    """Without pairs between groups: the sum of squares of what the mean changes by when a group is left out."""
    index, rng = _cliques(48), np.random.default_rng(1)
    value = (rng.random((2, len(index))) < 0.4).astype(float)
    by = spread(index, value)
    assert by.groups == pytest.approx(12)
    part = value.reshape(2, 12, 6).mean(axis=2)
    left_out = (part.sum(axis=1, keepdims=True) - part) / 11
    centered = left_out - value.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(by.covariance, centered @ centered.T, rtol=1e-12)


def test_spread_is_the_sum_over_pairs_that_touch_a_common_group():
    rng = np.random.default_rng(2)
    index = np.unique(np.sort(rng.integers(0, 300, (400, 2)), axis=1), axis=0)
    index = index[index[:, 0] != index[:, 1]]
    value = rng.random((1, len(index)))
    local = np.unique(index, return_inverse=True)[1].reshape(-1, 2)
    group = related_groups(local)[local]
    residual = value[0] - value[0].mean()
    share = [(group == g).any(axis=1).mean() for g in range(group.max() + 1)]
    touch = (group[:, None, :, None] == group[None, :, None, :]).any(axis=(2, 3))
    expected = (np.outer(residual, residual) * touch).sum() / len(index) ** 2
    # The correction for few groups is at most that of the largest.
    found = spread(index, value).covariance[0, 0]
    assert expected * 0.99 < found < expected / (1 - max(share)) ** 2 * 1.05


def test_intervals_of_independent_pairs_are_those_of_the_textbook():
    """Disjoint pairs are a group each: Wilson's interval with the variance of n - 1 trials and Student's t."""
    n = 400
    index = np.arange(2 * n).reshape(n, 2)
    value = np.zeros((2, n))
    value[0, :120] = 1
    value[1, 60:140] = 1
    by = spread(index, value)
    assert by.groups == pytest.approx(n)
    p, t = 0.3, stats.t.ppf(0.975, n - 1)
    assert by.errors[0] ** 2 == pytest.approx(p * (1 - p) / n / (1 - 1 / n) ** 2)
    trials = n * (1 - 1 / n) ** 2
    center, square = p + t**2 / 2 / trials, t**2 / trials
    half = t * np.sqrt(p * (1 - p) / trials + t**2 / 4 / trials**2)
    expected = np.array([center - half, center + half]) / (1 + square)
    np.testing.assert_allclose(share_interval(p, by.covariance[0, 0], by), expected)
    low, high = difference_interval(0.3, 0.2, by)
    assert low < 0.1 < high
    paired = np.std(value[0] - value[1], ddof=1) / np.sqrt(n)
    assert (high - low) / 2 == pytest.approx(1.96 * paired, rel=0.02)


def test_intervals_at_the_ends_are_not_empty():
    names = np.arange(80).astype(str)
    index = _cliques(40)
    v = np.repeat(np.random.default_rng(0).normal(size=(20, 30)), 4, axis=0)
    row = maps.recall(v, names, names[index], interval=True).iloc[0]
    assert row.recall == row.high == 1.0
    assert row.se == 0
    # Ten groups that are all found, Student's t with nine degrees of freedom: 10 / (10 + t^2).
    assert row.low == pytest.approx(10 / (10 + stats.t.ppf(0.975, 9) ** 2))
    assert maps.recall(v, names, names[index]).iloc[0][["se", "low", "high"]].isna().all()
    again = maps.recall(v, names, names[index], bootstrap=5).iloc[0]
    assert again.low == row.low


@pytest.mark.parametrize("kind", ["cliques", "no signal", "strong", "sparse"])
def test_coverage_on_screens_drawn_again(kind):
    """80 screens: 95 % are 76 on average, and fewer than 70 once in 100 of such sets; bench/coverage.py draws 1,000."""
    row = COVERAGE["coverage"](kind, "demo", 80, seed=77)
    for what in ("recall", "one map", "difference"):
        assert row[f"{what}: coverage"] >= 70 / 80
        assert 0.7 < row[f"{what}: se over spread"] < 1.5


def test_scores_that_cancel_at_every_perturbation_have_no_less_spread_than_independent_pairs():
    """A ring of pairs found by turns: residuals at each perturbation sum to zero, which is chance, not certainty."""
    index = np.array([(k, (k + 1) % 24) for k in range(24)])
    value = (np.arange(24) % 2)[None].astype(float)
    assert spread(index, value).errors[0] == pytest.approx(np.sqrt(0.25 / 24))
    same = spread(index, np.concatenate([value, value]))
    np.testing.assert_allclose(same.covariance, 0.25 / 24)
