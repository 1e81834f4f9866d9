"""Recall against a direct transcription of its definition on a fully sorted null."""

import numpy as np
import pytest

from camae import maps
from camae.errors import CamaeError


def _definition(v, pairs, left, right):
    """Share of pairs whose place among all unordered pairs is in a tail: sort everything, searchsorted, compare."""
    unit = v / np.linalg.norm(v, axis=1, keepdims=True)
    cosines = unit @ unit.T
    null = np.sort(cosines[np.triu_indices(len(v), 1)])
    known = np.array([cosines[min(a, b), max(a, b)] for a, b in pairs])
    low = np.searchsorted(null, known, side="right") / len(null)
    high = np.searchsorted(null, known, side="left") / len(null)
    return int(((low <= left) | (high >= right)).sum())


@pytest.fixture
def screen():
    rng = np.random.default_rng(3)
    centre = rng.normal(size=(20, 12))
    v = centre[np.arange(120) % 20] + 1.2 * rng.normal(size=(120, 12))
    pairs = [(i, j) for i in range(120) for j in range(i + 1, 120) if i % 20 == j % 20]
    return v, np.array([f"G{i}" for i in range(120)]), pairs


@pytest.mark.parametrize("tails", [(0.05, 0.95), (0.1, 0.9), (0.0, 0.95), (0.003, 0.997)])
def test_recall_counts_what_the_definition_counts(screen, tails):
    v, names, pairs = screen
    table = maps.recall(v, names, [(names[a], names[b]) for a, b in pairs], tails=tails)
    assert list(table.columns) == ["recall", "n_pairs", "n_found", "left", "right", "se"]
    assert table.n_found.iloc[0] == _definition(v, pairs, *tails)
    assert table.n_pairs.iloc[0] == len(pairs)


def test_sources_repeats_and_unknown_names(screen):
    v, names, _ = screen
    pairs = {"one": [("G0", "G20"), ("G20", "G0"), ("G1", "G1"), ("G1", "nobody")], "two": [("G2", "G3")]}
    with pytest.warns(UserWarning, match="one: 1 of 4 pairs name a perturbation that the map lacks"):
        table = maps.recall(v, names, pairs)
    assert table.index.tolist() == ["one", "two"]
    assert table.n_pairs.tolist() == [1, 1]
    assert table.attrs["n_unknown"] == {"one": 1, "two": 0}
    with pytest.raises(CamaeError, match="more than once"):
        maps.recall(v, np.full(120, "G1"), pairs)


def test_random_vectors_score_the_share_of_the_tails():
    rng = np.random.default_rng(0)
    names = np.arange(400).astype(str)
    pairs = [(names[a], names[b]) for a, b in rng.integers(0, 400, (4000, 2))]
    row = maps.recall(rng.normal(size=(400, 64)), names, pairs, bootstrap=200).iloc[0]
    # 4 standard errors: a false alarm once in 16,000 seeds, and the seed is fixed.
    assert abs(row.recall - 0.10) < 4 * row.se
    assert 0.5 < row.se / np.sqrt(0.09 / row.n_pairs) < 3


def test_a_constant_embedding_finds_nothing_beyond_chance():
    names = np.arange(50).astype(str)
    table = maps.recall(np.ones((50, 4)), names, [(names[i], names[i + 1]) for i in range(49)])
    assert table.recall.iloc[0] <= 0.10


def test_curve_passes_through_recall_and_paired_difference_of_equal_maps_is_zero(screen):
    v, names, pairs = screen
    named = [(names[a], names[b]) for a, b in pairs]
    curve = maps.recall_curve(v, names, named, [0.1, 0.2])
    assert curve.recall.tolist() == [
        maps.recall(v, names, named, tails=tails).recall.iloc[0] for tails in [(0.05, 0.95), (0.1, 0.9)]
    ]
    noise = np.random.default_rng(1).normal(size=v.shape)
    result = maps.recall_difference([v, v], [noise], names, named, bootstrap=100)
    assert result["difference"]["value"] == pytest.approx(
        result["trained"]["value"] - result["baseline"]["value"]
    )
    assert result["difference"]["value"] > 2 * result["difference"]["se"] > 0
    same = maps.recall_difference([v], [v], names, named, bootstrap=20)["difference"]
    assert same == {"value": 0.0, "se": 0.0}
