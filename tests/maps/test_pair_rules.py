"""Rules of pairs as copairs has them: any of several columns, filters, and distances."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist

from camae import maps
from camae.errors import CamaeError
from camae.maps.profile_pairs import Negatives, PairRules, find_queries


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    n = 60
    meta = pd.DataFrame(
        {
            "pert": [f"p{i % 6}" for i in range(n)],
            "plate": [f"q{i}" for i in rng.integers(0, 3, n)],
            "target": [f"t{i}" for i in rng.integers(0, 9, n)],
            "dose": rng.integers(0, 5, n),
        }
    )
    return rng.normal(size=(n, 8)), meta


ANY = [
    ({"any": ["pert", "target"]}, ["plate"]),
    ({"all": ["pert"], "any": ["target", "dose"]}, []),
    (["pert"], {"any": ["target", "dose"]}),
    (["pert"], {"all": ["plate"], "any": ["target", "dose"]}),
    ({"any": ["pert", "target"]}, {"any": ["plate", "dose"]}),
]


@pytest.mark.parametrize(("same", "differ"), ANY)
def test_any_finds_the_pairs_of_copairs(table, same, differ):
    matching = pytest.importorskip("copairs.matching", reason="copairs is a test-only reference")
    _, meta = table
    found = matching.Matcher(meta, list(meta.columns), seed=0).get_all_pairs(same, differ)
    theirs = {frozenset(pair) for pairs in found.values() for pair in pairs}
    rules = PairRules.of(meta, same, differ, same, differ, None, "|")
    queries = find_queries(meta, rules, np.ones(len(meta), dtype=bool))
    positive = {
        frozenset((row, other))
        for row, others in zip(queries.profile, queries.positive, strict=True)
        for other in others[others >= 0]
    }
    negative = Negatives(np, meta, rules).mask(np.arange(len(meta)))
    assert positive == theirs
    assert {frozenset(pair) for pair in np.argwhere(negative)} == theirs


def test_a_filter_leaves_the_rows_that_copairs_keeps(table):
    copairs_map = pytest.importorskip("copairs.map", reason="copairs is a test-only reference")
    x, meta = table
    kept, _ = copairs_map.filter.evaluate_and_filter(meta, ["pert", "dose > 0", "plate != 'q1'"])
    theirs = copairs_map.average_precision(
        kept.reset_index(drop=True), x[kept.index], ["pert"], [], [], ["pert"], progress_bar=False
    )
    query = np.arange(60) % 2 == 0
    ours = maps.average_precision(
        x, meta, ["pert", "dose > 0"], [], [], ["pert", "plate != 'q1'"], ties="copairs", query=query
    )
    even = kept.index % 2 == 0
    assert ours.index.tolist() == kept.index[even].tolist()
    # Sums of at most 100 fp64 terms, in another order.
    np.testing.assert_allclose(ours.average_precision, theirs.average_precision[even], atol=100 * 2.3e-16)
    np.testing.assert_allclose(
        ours.normalized_average_precision, theirs.normalized_average_precision[even], atol=1e-12
    )


@pytest.mark.parametrize("distance", ["cosine", "correlation", "euclidean"])
def test_distances_rank_as_scipy_and_copairs_do(table, distance):
    copairs_map = pytest.importorskip("copairs.map", reason="copairs is a test-only reference")
    x, meta = table
    x = x + 3  # an origin that tells cosine and correlation apart
    ours = maps.average_precision(x, meta, "pert", [], [], "pert", distance=distance)
    near = -cdist(x, x, distance)
    for row in range(10):
        others = np.delete(np.arange(60), row)
        hits = (meta.pert == meta.pert[row]).to_numpy()[others[np.argsort(-near[row, others])]]
        expected = np.mean((np.cumsum(hits) / np.arange(1, 60))[hits])
        assert ours.average_precision[row] == pytest.approx(expected, abs=1e-13)
    theirs = copairs_map.average_precision(
        meta, x, ["pert"], [], [], ["pert"], distance=distance, progress_bar=False
    )
    # copairs ranks in fp32: pairs closer than its rounding may change places.
    assert np.median(np.abs(ours.average_precision - theirs.average_precision)) < 1e-6


def test_identical_profiles_are_tied_by_every_distance():
    x = np.tile(np.random.default_rng(1).normal(size=(1, 50)), (30, 1)).astype(np.float32)
    meta = pd.DataFrame({"kind": ["a"] * 5 + ["b"] * 25})
    expected = maps.average_precision(np.ones((30, 2)), meta, "kind", [], [], "kind").average_precision
    for distance in ("cosine", "euclidean"):
        ap = maps.average_precision(x, meta, "kind", [], [], "kind", distance=distance)
        np.testing.assert_allclose(ap.average_precision, expected, rtol=0, atol=1e-12)
        assert ap.normalized_average_precision.abs().max() < 1e-12  # a constant embedding is chance


def test_bad_rules_are_one_sentence(table):
    x, meta = table
    rules = {"pos_diffby": [], "neg_sameby": [], "neg_diffby": "pert"}
    for pos, sentence in [
        ({"some": ["pert"]}, "pos_sameby has the key 'some'; give columns under 'all' and 'any'"),
        (["pert", "dose > 9"], r"the filter \(dose > 9\) leaves none of the 60 rows"),
        (["pert", "dosis > 9"], r"the filter \(dosis > 9\) cannot be evaluated on the metadata"),
        (["pert", "dose > @meta"], "cannot be evaluated on the metadata"),
        ({"any": ["pert", "target"]}, "sameby must name those that make a group"),
    ]:
        with pytest.raises(CamaeError, match=sentence):
            maps.retrieval(x, meta, pos, **rules)
    with pytest.raises(CamaeError, match="the multilabel column 'target' stands under 'any'"):
        maps.retrieval(x, meta, {"all": ["pert"], "any": ["target"]}, **rules, multilabel="target")
    with pytest.raises(CamaeError, match="unknown distance 'manhattan'; choose one of cosine"):
        maps.retrieval(x, meta, "pert", **rules, distance="manhattan")
    with pytest.raises(CamaeError, match="a Euclidean distance has no sign"):
        maps.retrieval(x, meta, "pert", **rules, distance="euclidean", absolute=True)
    with pytest.raises(CamaeError, match=r"share \['pert'\] and differ in any of \['pert'\]"):
        maps.retrieval(x, meta, "pert", {"any": ["pert"]}, [], "pert")


def test_all_pairs_of_a_rule_are_symmetric(table):
    _, meta = table
    rules = PairRules.of(meta, {"any": ["pert", "target"]}, [], "plate", {"any": ["pert", "dose"]}, None, "|")
    mask = Negatives(np, meta, rules).mask(np.arange(len(meta)))
    assert all(mask[i, j] == mask[j, i] for i, j in itertools.combinations(range(60), 2))
