"""Replicate counts that confound recall: on noise, where nothing but the counts can be recalled."""

import numpy as np
import pytest

from camae import maps
from camae.errors import CamaeError
from camae.maps.replicate_counts import _strata


def noise_map(seed, many=8, controls=64, genes=600):
    """A map of pure noise, a fifth of the genes with `many` times the replicates, known pairs among these."""
    rng = np.random.default_rng(seed)
    replicates = np.where(np.arange(genes) % 5 == 0, many, 1)
    by = np.concatenate([np.repeat([f"g{i:04d}" for i in range(genes)], replicates), [""] * controls])
    x = rng.normal(size=(len(by), 64))
    found = maps.map_profiles(x, by, None, by == "", "none")
    pairs = found.names[rng.choice(np.flatnonzero(replicates == replicates.max()), (800, 2))]
    return found, pairs


def test_pairs_of_genes_with_8_times_the_replicates_are_recalled_on_noise_and_it_is_said():
    found, pairs = noise_map(0)
    assert found.replicates.tolist() == [8 if i % 5 == 0 else 1 for i in range(600)]
    out = maps.matched_recall(found.vectors, found.names, found.replicates, pairs)
    row = out.loc["pairs"]
    assert row.recall == maps.recall(found.vectors, found.names, pairs).recall.iloc[0]
    assert row.recall > 0.15  # of noise, where chance is .1
    # The pairs are random among the well-replicated genes, as the matched ones are: they agree within the noise of
    # 800 pairs, 3 standard errors of a share widened by the genes that pairs have in common (13 pairs a gene).
    assert abs(row.recall - row.matched) < 3 * np.sqrt(0.2 * 0.8 / 800) * np.sqrt(13 / 4)
    assert (row.chance, row.replicates_of_pairs, row.replicates) == (pytest.approx(0.1), 8, 1)
    [line] = maps.replicate_warnings(out)
    assert "pairs: replicate counts confound recall" in line
    assert f"(8.0 on average, median of the map 1.0) recall {row.matched:.3f}, chance 0.100" in line


def test_equal_counts_and_pairs_of_all_genes_are_chance_and_no_word_is_said():
    found, pairs = noise_map(1, many=1)
    out = maps.matched_recall(found.vectors, found.names, found.replicates, {"a": pairs, "b": pairs[:50]})
    # The random pairs are drawn from all pairs, of which .1 lie in the tails; 5 standard errors over draws.
    assert (np.abs(out.matched - 0.1) < 5 * out.se + 1e-9).all()
    assert maps.replicate_warnings(out) == []
    found, _ = noise_map(2)
    rng = np.random.default_rng(0)
    out = maps.matched_recall(
        found.vectors, found.names, found.replicates, found.names[rng.integers(0, 600, (800, 2))]
    )
    assert maps.replicate_warnings(out) == []


def test_a_real_relation_is_not_taken_for_replicates():
    found, pairs = noise_map(3, many=1)
    v = found.vectors.copy()
    for a, b in np.searchsorted(found.names, pairs[:40]):
        v[b] = v[a] + 0.1 * v[b]
    out = maps.matched_recall(v, found.names, found.replicates, pairs[:40])
    assert out.recall["pairs"] > 0.9
    assert out.matched["pairs"] < 0.15


def test_strata_hold_enough_perturbations_of_like_counts():
    count = np.repeat([1, 2, 3, 7, 30], [50, 5, 16, 25, 3])
    stratum = _strata(count)
    assert np.bincount(stratum).tolist() == [50, 21, 28]
    assert (np.diff(stratum) >= 0).all()
    assert _strata(np.array([4, 4, 1])).tolist() == [0, 0, 0]


def test_bad_input_is_one_sentence():
    found, pairs = noise_map(0, genes=40)
    with pytest.raises(
        CamaeError, match=r"replicates needs one number for each of the 40 names, got shape \(3,\)"
    ):
        maps.matched_recall(found.vectors, found.names, [1, 2, 3], pairs)
    with pytest.raises(CamaeError, match="draws 1 give no standard error"):
        maps.matched_recall(found.vectors, found.names, found.replicates, pairs, draws=1)
