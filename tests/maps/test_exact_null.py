"""Nulls of average precision: against all rankings listed, against each other, and against copairs' random rankings."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from camae import maps
from camae.errors import CamaeError
from camae.maps import nulls
from camae.maps.exact_null import (
    GRID,
    enumerated_null,
    grid_nulls,
    grid_p_values,
    is_enumerated,
    is_on_grid,
)


def listed(n_pos, n_total):
    """Average precision of every ranking, by its definition."""
    sets = itertools.combinations(range(1, n_total + 1), n_pos)
    return np.sort([sum((i + 1) / place for i, place in enumerate(places)) / n_pos for places in sets])


SMALL = [(1, 5), (3, 7), (4, 4), (5, 6), (2, 12), (6, 13)]


@pytest.mark.parametrize("size", SMALL)
def test_enumeration_lists_every_ranking(size):
    assert len(enumerated_null(*size)) == math.comb(size[1], size[0])
    # Sums of at most 6 terms below 1 in another order.
    np.testing.assert_allclose(enumerated_null(*size), listed(*size), rtol=0, atol=6 * 2.3e-16)


@pytest.mark.parametrize("size", SMALL)
def test_grid_p_lies_between_the_exact_p_and_that_of_one_step_lower(size):
    every = listed(*size)
    p = grid_p_values(every, grid_nulls([size])[size], size[0])
    exact = np.array([(every >= score - 1e-12).mean() for score in every])
    lower = np.array([(every >= score - 1 / GRID - 1e-12).mean() for score in every])
    rounding = 1e-15 * size[1]  # one product and sum for each place
    assert (exact * (1 - rounding) <= p).all()
    assert (p <= lower * (1 + rounding)).all()


def test_grid_serves_several_sizes_in_one_run():
    sizes = [(2, 9), (5, 30), (3, 40), (5, 12)]
    together = grid_nulls(sizes)
    for size in sizes:
        np.testing.assert_array_equal(together[size], grid_nulls([size])[size])


def test_grid_holds_where_listing_ends():
    # 7 replicates beside 64 controls, and a tail of 1e-7 that listing 1.3e9 rankings would give: the p of the best
    # rankings can be counted by hand. (1..7): 1 ranking; (1..6, 8): the next, of average precision 1 - 1 / 56.
    size = (7, 71)
    assert is_on_grid(*size)
    assert not is_enumerated(*size)
    tail = grid_nulls([size])[size]
    every = math.comb(71, 7)
    p = grid_p_values(np.array([1.0, (6 + 7 / 8) / 7]), tail, 7) * every
    np.testing.assert_allclose(p, [1, 2], rtol=1e-12)


def test_exact_and_permutation_p_agree_within_the_noise_of_the_draws():
    for size, draws in [((3, 40), 20_000), ((7, 71), 20_000)]:
        score = np.quantile(nulls.null_average_precision(*size, 2000, 9), [0.1, 0.5, 0.9, 0.99])
        exact, _, source = nulls.query_p_values(score, [size] * 4, draws, 0.05, 0, "auto")
        drawn, _, other = nulls.query_p_values(score, [size] * 4, draws, 0.05, 0, "permutation")
        assert set(source) <= {"exact", "grid"}
        assert set(other) == {"permutation"}
        # A binomial share of the draws (5 standard errors), and the grid's step: below 1 % of these p (as measured
        # where both are known, and by density times 1 / GRID).
        assert (
            np.abs(drawn - exact) < 5 * np.sqrt(exact * (1 - exact) / draws) + 2 / draws + 0.01 * exact
        ).all()


def test_p_values_agree_with_the_permutation_null_of_copairs(tmp_path):
    copairs_map = pytest.importorskip("copairs.map", reason="copairs is a test-only reference")
    rng = np.random.default_rng(2)
    meta = pd.DataFrame({"pert": [f"p{i % 12}" for i in range(48)]})
    x = rng.normal(size=(48, 6)) + 1.3 * rng.normal(size=(12, 6))[np.arange(48) % 12]
    ap = maps.average_precision(x, meta, "pert", [], [], "pert")
    ours = maps.mean_average_precision(ap, "pert", rule="map_null")
    theirs = copairs_map.average_precision(meta, x, ["pert"], [], [], ["pert"], progress_bar=False)
    draws = 20_000
    theirs = copairs_map.mean_average_precision(
        theirs, ["pert"], draws, 0.05, 0, cache_dir=tmp_path, progress_bar=False
    ).sort_values("pert")
    p = ours.p_value.to_numpy()
    assert p.min() < 1e-3  # the range that matters is there
    # copairs' share of its draws about the exact p: 5 standard errors, and the 1 added to both counts.
    assert (np.abs(theirs.p_value - p) < 5 * np.sqrt(p * (1 - p) / draws) + 2 / draws).all()
    np.testing.assert_allclose(
        ours.normalized_average_precision, theirs.mean_normalized_average_precision, rtol=0, atol=1e-6
    )


def test_permutations_go_on_to_the_resolution_that_benjamini_hochberg_needs():
    size, queries = (40, 4000), 500
    assert not is_enumerated(*size)
    assert not is_on_grid(*size)
    score = np.full(queries, 0.008)
    score[3] = 1.0  # perfect: no random ranking reaches it
    p, smallest, source = nulls.query_p_values(score, [size] * queries, 1000, 0.05, 0, "auto")
    assert set(source) == {"permutation"}
    assert p[3] == smallest[3] < 0.05 / queries  # alone among all queries it is found
    assert nulls.q_values(p)[3] < 0.05
    few, least, _ = nulls.query_p_values(score, [size] * queries, 1000, 0.05, 0, "permutation")
    assert few[3] == least[3] == 1 / 1001
    assert nulls.q_values(few)[3] > 0.05


def test_sequential_p_values_stay_valid_in_spite_of_stopping():
    # Scores from the null itself: P(p <= a) <= a for every a, by 5 standard errors of 4,000 independent scores.
    rng = np.random.default_rng(0)
    score = rng.random(4000)

    def count(pending, draws, stage):
        return rng.binomial(draws, 1 - score[pending])

    p = nulls.sequential_p_values(count, 4000, 40, 1000)
    for a in (0.005, 0.02, 0.1, 0.3, 0.5, 0.9):
        assert (p <= a).mean() < a + 5 * np.sqrt(a * (1 - a) / 4000)
    assert (p < 1 / 41).any()  # some went on


def test_smallest_attainable_p_is_reported_and_warned_about():
    # Two positives among 16 negatives: a perfect ranking has p = 1 / C(18, 2) = .0065.
    ap = pd.DataFrame(
        {
            "pert": [f"p{i}" for i in range(20)],
            "n_pos_pairs": 2,
            "n_total_pairs": 18,
            "average_precision": [1.0] + [0.2] * 19,
        }
    )
    each = maps.average_precision_p_values(ap)
    assert (each.smallest_p_value == 1 / math.comb(18, 2)).all()
    assert each.p_value[0] == each.smallest_p_value[0]
    assert (each["null"] == "exact").all()
    with pytest.warns(
        UserWarning, match=r"20 of 20 groups can be retrieved at q < 0.05 only together with others"
    ):
        maps.mean_average_precision(ap, "pert")
    with pytest.warns(
        UserWarning, match=r"20 of 20 groups cannot be retrieved at q < 0.001.*up to 0.0065 \(p0\)"
    ):
        out = maps.mean_average_precision(ap, "pert", threshold=0.001)
    assert out.smallest_p_value.tolist() == pytest.approx([1 / math.comb(18, 2)] * 20, rel=1e-12)


def test_expected_average_precision_is_the_mean_of_all_rankings():
    for n_pos, n_total in SMALL:
        mean = nulls.expected_average_precision(np.array([n_pos]), np.array([n_total]))[0]
        assert mean == pytest.approx(listed(n_pos, n_total).mean(), abs=1e-14 * n_total)


def test_bad_options_are_one_sentence():
    ap = pd.DataFrame({"g": ["a"], "n_pos_pairs": [1], "n_total_pairs": [9], "average_precision": [0.5]})
    with pytest.raises(CamaeError, match="unknown null 'bootstrap'; choose one of auto, permutation"):
        maps.average_precision_p_values(ap, null="bootstrap")
    with pytest.raises(CamaeError, match=r"threshold 1.5 is not a false-discovery rate"):
        maps.mean_average_precision(ap, "g", threshold=1.5)
    with pytest.raises(CamaeError, match="null_size 0 draws no ranking"):
        maps.mean_average_precision(ap, "g", null_size=0)
    with pytest.raises(CamaeError, match=r"null_size 10.5 draws no ranking; give 1 or more, whole"):
        maps.mean_average_precision(ap, "g", null_size=10.5)
    with pytest.raises(CamaeError, match="seed -1 is not a whole number from 0 on"):
        maps.mean_average_precision(ap, "g", seed=-1)
    with pytest.raises(CamaeError, match="unknown rule 'median'; choose one of mean_log_p, map_null"):
        maps.mean_average_precision(ap, "g", rule="median")
