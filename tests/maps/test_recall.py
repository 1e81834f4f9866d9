"""Recall against a direct transcription of its definition on a fully sorted null."""

import itertools
import warnings

import numpy as np
import pandas as pd
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
    center = rng.normal(size=(20, 12))
    v = center[np.arange(120) % 20] + 1.2 * rng.normal(size=(120, 12))
    pairs = [(i, j) for i in range(120) for j in range(i + 1, 120) if i % 20 == j % 20]
    return v, np.array([f"G{i}" for i in range(120)]), pairs


@pytest.mark.parametrize("tails", [(0.05, 0.95), (0.1, 0.9), (0.0, 0.95), (0.003, 0.997)])
def test_recall_counts_what_the_definition_counts(screen, tails):
    v, names, pairs = screen
    table = maps.recall(v, names, [(names[a], names[b]) for a, b in pairs], tails=tails)
    assert list(table.columns) == ["recall", "n_pairs", "n_found", "left", "right", "se", "low", "high"]
    assert table.n_found.iloc[0] == _definition(v, pairs, *tails)
    assert table.n_pairs.iloc[0] == len(pairs)


@pytest.mark.parametrize("distinct", [10_000, 4])  # 4: tied cosines
@pytest.mark.parametrize("tails", [(0.05, 0.95), (0.07, 0.93), (1 / 3, 2 / 3), (0.29, 0.71), (0.0, 1.0)])
def test_the_pair_at_the_edge_of_a_tail_is_decided_as_defined(tails, distinct):
    """Every pair is known, so that one rank too many or too few changes the count; 37 x 36 / 2 pairs."""
    v = np.random.default_rng(0).normal(size=(37, 3))[np.arange(37) % distinct]
    pairs = list(itertools.combinations(range(37), 2))
    names = np.array([f"G{i}" for i in range(37)])
    table = maps.recall(v, names, [(names[a], names[b]) for a, b in pairs], tails=tails)
    assert table.n_found.iloc[0] == _definition(v, pairs, *tails)


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
    row = maps.recall(rng.normal(size=(400, 64)), names, pairs, interval=True).iloc[0]
    # 4 standard errors: a false alarm once in 16,000 seeds, and the seed is fixed.
    assert abs(row.recall - 0.10) < 4 * row.se
    assert row.low < 0.10 < row.high
    # Random vectors, random pairs: nearly independent.
    assert 0.8 < row.se / np.sqrt(0.09 / row.n_pairs) < 1.3


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
    result = maps.recall_difference([v, v], [noise], names, named)
    assert result["difference"]["value"] == pytest.approx(
        result["trained"]["value"] - result["baseline"]["value"]
    )
    assert result["difference"]["value"] > 2 * result["difference"]["se"] > 0
    same = maps.recall_difference([v], [v], names, named)["difference"]
    assert (same["value"], same["se"]) == (0, 0)
    assert -0.03 < same["low"] <= 0 <= same["high"] < 0.03


def test_recall_counts_are_those_of_efaar(efaar, tmp_path):
    from sklearn.utils import Bunch

    rng = np.random.default_rng(8)
    genes = np.array([f"g{i:03d}" for i in range(300)])
    center = rng.normal(size=(30, 10))
    v = center[np.arange(300) % 30] + 1.5 * rng.normal(size=(300, 10))
    pairs = {}
    for source in ("CORUM", "StringDB"):
        index = np.unique(np.sort(rng.integers(0, 300, (900, 2)), axis=1), axis=0)
        pairs[source] = genes[index[index[:, 0] != index[:, 1]]]
        pd.DataFrame(pairs[source], columns=["entity1", "entity2"]).to_csv(
            tmp_path / f"{source}.txt", index=False
        )
    theirs = efaar.benchmark.known_relationship_benchmark(
        Bunch(metadata=pd.DataFrame({"gene": genes}), features=pd.DataFrame(v)),
        "gene",
        benchmark_sources=list(pairs),
        recall_thr_pairs=[(0.05, 0.95), (0.1, 0.9)],
        benchmark_data_dir=str(tmp_path),
    ).set_index("source")
    for tails in [(0.05, 0.95), (0.1, 0.9)]:
        ours = maps.recall(v, genes, pairs, tails=tails)
        counts = theirs[f"recall_{tails[0]}_{tails[1]}"] * ours.n_pairs
        assert ours.n_found.tolist() == counts[ours.index].round().astype(int).tolist()


def test_bad_tails_and_pairs_are_one_sentence(screen):
    v, names, _ = screen
    for pairs, tails, message in [
        ([("G1", "G2")], (0.05, 1.5), "between 0 and 1"),
        ([("G1", "G2")], (1.0, None), "take in every pair"),
        ([("G1", "G2", "G3")], (0.05, 0.95), "2-tuples"),
        ([], (0.05, 0.95), "none of its 0 pairs"),
        ([("x", "y")], (0.05, 0.95), "none of its 1 pairs"),
    ]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(CamaeError, match=message):
                maps.recall(v, names, pairs, tails=tails)
    assert maps.recall(v, names, [("G0", "G20")], tails=(None, 0.95)).left.isna().all()


def test_pairs_may_be_a_generator():
    v, names = np.random.default_rng(0).standard_normal((20, 4)), [f"g{i}" for i in range(20)]
    pairs = [("g0", "g1"), ("g2", "g3"), ("g4", "g5")]
    pd.testing.assert_frame_equal(
        maps.recall(v, names, (pair for pair in pairs)), maps.recall(v, names, pairs)
    )


def test_arguments_of_another_kind_are_one_sentence():
    v, names = np.random.default_rng(0).normal(size=(5, 6)), list("abcde")
    with pytest.raises(CamaeError, match="pairs must be a sequence of 2-tuples of names, not a NoneType"):
        maps.recall(v, names, None)
    for tails in ("ab", (0.05,), (0.05, "0.95")):
        with pytest.raises(CamaeError, match="tails must be two numbers or None, got"):
            maps.recall(v, names, [("a", "b")], tails=tails)
    with pytest.raises(CamaeError, match="bootstrap is -1; leave it out, or give interval=True"):
        maps.recall(v, names, [("a", "b")], bootstrap=-1)


def test_long_doubles_give_what_doubles_give():
    x, by = np.random.default_rng(0).normal(size=(8, 3)), list("aabbccdd")
    for call in (lambda x: maps.aggregate(x, by=by), lambda x: maps.align(x, "pca")):
        np.testing.assert_array_equal(call(x.astype(np.longdouble)), call(x))
