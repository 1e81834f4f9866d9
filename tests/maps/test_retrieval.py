"""Retrieval against copairs, against brute force over all orders of tied items, and on random and constant input."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from camae import maps
from camae.errors import CamaeError
from camae.maps.nulls import null_average_precision, q_values
from camae.maps.ranking import count_true

RULES = {"pos_sameby": ["pert"], "pos_diffby": [], "neg_sameby": ["plate"], "neg_diffby": ["control"]}


@pytest.fixture
def screen():
    rng = np.random.default_rng(5)
    n = 240
    meta = pd.DataFrame(
        {
            "pert": np.where(np.arange(n) % 4 == 0, "DMSO", [f"p{i % 36:02d}" for i in range(n)]),
            "plate": [f"plate{i}" for i in rng.integers(0, 3, n)],
            "well": [f"w{i}" for i in rng.integers(0, 9, n)],
        }
    )
    meta["control"] = (meta.pert == "DMSO").astype(int)
    effect = rng.normal(size=(37, 16))[pd.factorize(meta.pert)[0]]
    return (0.5 * effect + rng.normal(size=(n, 16))).astype(np.float32), meta


@pytest.mark.parametrize(
    "rules",
    [
        RULES,
        RULES | {"pos_diffby": ["well"]},
        RULES | {"pos_diffby": ["plate", "well"], "neg_sameby": [], "neg_diffby": ["pert", "well"]},
    ],
)
def test_average_precision_is_that_of_copairs(screen, rules, tmp_path, monkeypatch):
    copairs_map = pytest.importorskip("copairs.map", reason="copairs is a test-only reference")
    monkeypatch.setenv("HOME", str(tmp_path))
    x, meta = screen
    theirs = copairs_map.average_precision(meta, x, **rules, progress_bar=False)
    ours = maps.average_precision(x, meta, **rules, ties="copairs")
    scored = theirs[theirs.n_pos_pairs.fillna(0) > 0].dropna(subset="average_precision")
    scored = scored.loc[ours.index]
    assert len(ours) > 100
    assert (ours.n_pos_pairs.to_numpy() == scored.n_pos_pairs.to_numpy()).all()
    assert (ours.n_total_pairs.to_numpy() == scored.n_total_pairs.to_numpy()).all()
    # Same order of the same cosines: the remaining difference is the order of at most 100 fp32 or fp64 additions.
    np.testing.assert_allclose(ours.average_precision, scored.average_precision, rtol=0, atol=100 * 6e-8)


def test_mean_average_precision_rule_agrees_with_copairs_up_to_the_random_null(screen, tmp_path):
    copairs_map = pytest.importorskip("copairs.map", reason="copairs is a test-only reference")
    x, meta = screen
    meta = meta[meta.control == 0]
    x = x[meta.index]
    ours_ap = maps.average_precision(x, meta, "pert", [], [], "pert", ties="copairs")
    theirs_ap = copairs_map.average_precision(meta, x, ["pert"], [], [], ["pert"], progress_bar=False)
    ours = maps.mean_average_precision(ours_ap, "pert", 20_000, rule="map_null")
    theirs = copairs_map.mean_average_precision(
        theirs_ap, ["pert"], 20_000, 0.05, 0, cache_dir=tmp_path, progress_bar=False
    ).sort_values("pert")
    np.testing.assert_allclose(ours.average_precision, theirs.mean_average_precision, atol=1e-6)
    # Both p are binomial shares of 20,000 draws: their difference has variance 2 p (1 - p) / 20,000; 5 sigma.
    p = theirs.p_value.to_numpy()
    assert (np.abs(ours.p_value - p) < 5 * np.sqrt(2 * p * (1 - p) / 20_000) + 1e-4).all()


def test_expected_ap_is_the_mean_over_all_orders_of_tied_items():
    cosine = np.array([0.9, 0.5, 0.5, 0.5, 0.5, 0.1])
    positive = np.array([False, True, False, True, False, True])
    scores = []
    for order in itertools.permutations(range(6)):
        if all(cosine[a] >= cosine[b] for a, b in itertools.pairwise(order)):
            hits = positive[list(order)]
            scores.append(np.mean((np.cumsum(hits) / np.arange(1, 7))[hits]))
    x = np.concatenate([[[1.0, 0.0]], np.stack([cosine, np.sqrt(1 - cosine**2)], axis=1)])
    meta = pd.DataFrame({"kind": ["q"] + ["q" if hit else "n" for hit in positive]})
    ap = maps.average_precision(
        x, meta, "kind", [], [], "kind", query=np.arange(7) == 0
    ).average_precision.iloc[0]
    assert ap == pytest.approx(math.fsum(scores) / len(scores), abs=1e-12)


@pytest.mark.parametrize("n_pos", [3, 100])  # counted, and sorted (more than 64 positives)
def test_counting_and_sorting_agree_with_a_plain_ranking(n_pos):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n_pos + 150, 8))
    meta = pd.DataFrame({"kind": ["a"] * n_pos + ["b"] * 150})
    ours = maps.average_precision(x, meta, "kind", [], [], "kind", query=np.arange(len(x)) < n_pos)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    expected = []
    for i in range(n_pos):
        others = np.delete(np.arange(len(x)), i)
        hits = others[np.argsort(-(unit[others] @ unit[i]))] < n_pos
        expected.append(np.mean((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits]))
    np.testing.assert_allclose(ours.average_precision, expected, rtol=0, atol=1e-10)


def test_random_embeddings_are_retrieved_at_most_at_the_fdr_level(screen):
    _, meta = screen
    shares = []
    for seed in range(6):
        x = np.random.default_rng(seed).normal(size=(len(meta), 16))
        hits = maps.retrieval(x, meta, **RULES, null_size=1000, query=(meta.control == 0).to_numpy())
        shares.append(hits.retrieved.mean())
    # Under the null BH rejects anything in at most 5 % of screens; more than one of six has probability 3 %.
    assert sum(share > 0 for share in shares) <= 1
    assert max(shares) <= 0.10


def test_a_constant_embedding_scores_chance_here_and_everything_in_parity_mode(screen):
    _, meta = screen
    constant = np.full((len(meta), 7), 0.3, dtype=np.float32)
    hits = maps.retrieval(constant, meta, **RULES, null_size=500, query=(meta.control == 0).to_numpy())
    ap = maps.average_precision(constant, meta, **RULES, query=(meta.control == 0).to_numpy())
    for pos, total, value in ap[["n_pos_pairs", "n_total_pairs", "average_precision"]].itertuples(
        index=False
    ):
        # 2,000 draws of an AP with standard deviation at most 1/2: 5 standard errors.
        chance = null_average_precision(int(pos), int(total), 2000, 0)
        assert abs(value - chance.mean()) < 5 * 0.5 / np.sqrt(2000)
    assert hits.retrieved.sum() == 0
    parity = maps.average_precision(np.ones((len(meta), 1)), meta, **RULES, ties="copairs")
    assert (parity.average_precision == 1).all()


def test_multilabel_targets_and_absolute_cosine():
    meta = pd.DataFrame({"target": ["A|B", "A", "B", "C", "C", None]})
    x = np.array([[1.0, 0], [1, 0.1], [-1, 0.1], [0, 1], [0, 1], [1, 1]])
    rules = {"pos_sameby": "target", "pos_diffby": [], "neg_sameby": [], "neg_diffby": "target"}
    ap = maps.average_precision(x, meta, **rules, multilabel="target", absolute=True)
    asked = {(row, label): (pos, total) for row, label, pos, total, *_ in ap.itertuples()}
    # Row 0 asks once for each of its labels; rows 3 and 4 share no label with it, row 5 has none and never counts.
    assert asked == {
        (0, "A"): (1, 3),
        (0, "B"): (1, 3),
        (1, "A"): (1, 4),
        (2, "B"): (1, 4),
        (3, "C"): (1, 4),
        (4, "C"): (1, 4),
    }
    assert ap.average_precision.tolist() == [1.0] * 6  # row 2 is opposite to row 0: absolute cosine finds it
    signed = maps.average_precision(x, meta, **rules, multilabel="target")
    assert signed.average_precision.iloc[1] < 1


def test_nulls_and_q_values():
    for pos, total in [(1, 5), (4, 9), (7, 400), (300, 2000)]:
        null = null_average_precision(pos, total, 4000, 3)
        # E[AP] of a random ranking: mean over k of E[k / position of the k-th hit]; by the tie formula with one tie.
        harmonic = np.sum(1 / np.arange(1, total + 1))
        expected = (harmonic + (pos - 1) / max(total - 1, 1) * (total - harmonic)) / total
        assert abs(null.mean() - expected) < 5 * null.std() / np.sqrt(4000)
    p = np.random.default_rng(0).random(50) ** 3
    from scipy.stats import false_discovery_control

    np.testing.assert_allclose(q_values(p), false_discovery_control(p), rtol=1e-12)


@pytest.mark.parametrize("n", [1, 8, 15, 2048, 5001])
def test_count_true_counts(n):
    flags = np.random.default_rng(n).random((3, n)) < 0.6
    assert count_true(flags).tolist() == flags.sum(axis=1).tolist()
    assert count_true(np.ones((2, n), dtype=bool)).tolist() == [n, n]


def test_bad_input_is_one_sentence(screen):
    x, meta = screen
    with pytest.raises(CamaeError, match="at least two replicates"):
        maps.retrieval(x, meta.assign(pert=np.arange(len(meta)).astype(str)), **RULES)
    with pytest.raises(CamaeError, match="neg_sameby names the column 'site'"):
        maps.retrieval(x, meta, "pert", [], "site", "control")
    with pytest.raises(CamaeError, match="no profile has a negative pair"):
        maps.retrieval(x, meta.assign(control=0), **RULES)
    lonely = meta.assign(pert=meta.pert.where(meta.index != 5, "only once"))
    with pytest.warns(UserWarning, match=r"1 of 240 profiles have no positive pair.*row 5, only once"):
        hits = maps.retrieval(x, lonely, **RULES, null_size=50)
    assert "only once" not in set(hits.pert)
    bad = x.copy()
    bad[7, 3] = np.nan
    with pytest.raises(CamaeError, match="row 7, column 3"):
        maps.retrieval(bad, meta, **RULES)
