"""Arm bias against scipy, probes against scikit-learn, recall at a false-positive rate against brute force."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import brunnermunzel
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from camae import maps
from camae.errors import CamaeError
from camae.maps.arms import BINS


@pytest.fixture
def genome():
    rng = np.random.default_rng(4)
    genes = [f"g{i}" for i in range(160)]
    arms = {gene: f"chr{1 + i // 40}p" for i, gene in enumerate(genes)}
    zfpkm = {gene: -4.0 if i % 40 < 25 else 1.0 for i, gene in enumerate(genes)}
    artifact = rng.normal(size=(4, 12))[np.arange(160) // 40]
    return rng.normal(size=(160, 12)) + 0.8 * artifact, genes, arms, zfpkm


def test_arm_bias_is_brunner_munzel_of_the_cosines(genome):
    v, genes, arms, _ = genome
    table = maps.arm_bias(v, genes, arms, block=32).set_index("arm")
    cosine = np.rint((maps.relate(v) + 1) * BINS / 2)  # the grid the cosines are ranked on
    code = np.arange(160) // 40
    i, j = np.triu_indices(160, 1)
    same = code[i] == code[j]
    for arm, inside, across in [
        ("all", cosine[i, j][same], cosine[i, j][~same]),
        ("chr2p", cosine[i, j][same & (code[i] == 1)], cosine[40:80][:, np.r_[0:40, 80:160]].ravel()),
    ]:
        reference = brunnermunzel(inside, across, distribution="normal")
        assert table.loc[arm, "statistic"] == pytest.approx(-reference.statistic, rel=1e-3)
        assert table.loc[arm, "p_value"] == pytest.approx(reference.pvalue, rel=1e-2, abs=1e-300)
        wins = (inside[:, None] > across).mean() + (inside[:, None] == across).mean() / 2
        # A cosine within an ulp of a bin's edge may fall on either side: a few of 2e7 comparisons.
        assert table.loc[arm, "probability"] == pytest.approx(wins, abs=1e-5)


def test_arm_correction_removes_the_bias_and_nothing_else(genome):
    v, genes, arms, zfpkm = genome
    corrected = maps.correct_arms(v, genes, arms, zfpkm)
    for arm in range(4):
        silent = np.arange(40 * arm, 40 * arm + 25)
        np.testing.assert_allclose(corrected[silent].mean(axis=0), 0, atol=1e-14)
        shift = v[40 * arm : 40 * arm + 40] - corrected[40 * arm : 40 * arm + 40]
        np.testing.assert_allclose(shift, np.broadcast_to(shift[0], shift.shape), atol=1e-14)
    before, after = (maps.arm_bias(x, genes, arms).probability.iloc[0] for x in (v, corrected))
    assert before > 0.6
    assert abs(after - 0.5) < 0.03
    with pytest.raises(CamaeError, match="more than 30 unexpressed genes"):
        maps.correct_arms(v, genes, arms, zfpkm, more_than=30)


def test_feature_regression_is_least_squares():
    rng = np.random.default_rng(0)
    x, x_test = rng.normal(size=(300, 10)), rng.normal(size=(80, 10))
    weight = rng.normal(size=(10, 3))
    y, y_test = x @ weight + rng.normal(size=(300, 3)), x_test @ weight + 2 * rng.normal(size=(80, 3))
    y_test[:, 2] = 5.0
    names = ["Cells_AreaShape_Area", "Nuclei_Texture_Entropy_DNA", "Cells_Correlation_K"]
    table = maps.feature_regression(x, y, x_test, y_test, names)
    predicted = LinearRegression().fit(x, y).predict(x_test)
    expected = r2_score(y_test, predicted, multioutput="raw_values")[:2]
    # The relative ridge of 1e-6 moves the weights by about 1e-6 / (smallest relative eigenvalue > 0.5).
    np.testing.assert_allclose(table.r2[:2], expected, atol=1e-4)
    assert np.isnan(table.r2[2])
    assert table.category.tolist() == ["AreaShape", "Texture", "Correlation"]


def test_linear_probe_and_nearest_neighbor():
    rng = np.random.default_rng(1)
    label = np.repeat([f"p{i}" for i in range(8)], 12)
    plate = np.tile(["a", "b", "c"], 32)
    signal = 3 * np.eye(8, 20)[np.repeat(np.arange(8), 12)]
    x = signal + 0.5 * rng.normal(size=(96, 20))
    probe = maps.linear_probe(x, label, plate)
    assert probe["accuracy"] > 0.95
    noise = maps.linear_probe(rng.normal(size=(96, 20)), label, plate)
    # Binomial chance of 1/8 over 96 rows: 4 standard deviations.
    assert abs(noise["accuracy"] - noise["chance"]) < 4 * np.sqrt(0.125 * 0.875 / 96)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    knn = KNeighborsClassifier(1, metric="cosine")
    hits = [
        knn.fit(np.delete(unit, i, 0), np.delete(label, i)).predict(unit[i : i + 1])[0] == label[i]
        for i in range(96)
    ]
    assert maps.nearest_neighbor(x, label)["accuracy"] == np.mean(hits)
    assert maps.nearest_neighbor(x, label, exclude=label)["accuracy"] == 0
    compound = np.array([f"{name} {i % 4}" for i, name in enumerate(label)])
    allowed = (compound[:, None] != compound) & (plate[:, None] != plate)
    nearest = np.where(allowed, unit @ unit.T, -np.inf).argmax(axis=1)
    found = maps.nearest_neighbor(x, label, exclude=compound, batch=plate)
    assert found == {"accuracy": (label[nearest] == label).mean(), "n_rows": 96}
    with pytest.raises(
        CamaeError, match="no row has a neighbor outside its own group; check exclude= and batch="
    ):
        maps.nearest_neighbor(x, label, batch=np.zeros(96).astype(str))
    with pytest.raises(CamaeError, match="fewer than two labels"):
        maps.linear_probe(x, label, label)


@pytest.mark.parametrize("d", [6, 90])  # fewer and more features than rows: both forms of the ridge solution
def test_linear_probe_is_ridge_regression_on_indicators(d):
    rng = np.random.default_rng(3)
    label = np.array([f"c{i}" for i in rng.integers(0, 4, 60)])
    label[0] = "once"
    x = 10 * rng.normal(size=(60, d)) + 8 * np.eye(5, d)[np.unique(label, return_inverse=True)[1]]
    half = np.arange(60) % 2
    right = 0
    for fold in (0, 1):
        scaler = StandardScaler().fit(x[half != fold])
        model = Ridge(alpha=7.0).fit(
            scaler.transform(x[half != fold]), pd.get_dummies(label).to_numpy(float)[half != fold]
        )
        best = model.predict(scaler.transform(x[half == fold])).argmax(axis=1)
        right += (np.unique(label)[best] == label[half == fold]).sum()
    probe = maps.linear_probe(x, label, None, penalty=7.0, standardize=True, unseen="count")
    assert probe["accuracy"] == right / 60
    assert probe["majority"] == np.unique(label, return_counts=True)[1].max() / 60
    assert probe["n_labels"] == 5
    assert maps.linear_probe(x, label, None)["n_labels"] == 4
    with pytest.raises(CamaeError, match="unknown unseen 'keep'"):
        maps.linear_probe(x, label, None, unseen="keep")


@pytest.mark.parametrize("constant", [False, True])
def test_recall_at_a_false_positive_rate_is_the_sorted_definition(constant):
    rng = np.random.default_rng(2)
    names = np.array([f"g{i}" for i in range(60)])
    v = (
        np.ones((60, 3))
        if constant
        else rng.normal(size=(15, 6))[np.arange(60) % 15] + rng.normal(size=(60, 6))
    )
    pairs = [(names[a], names[b]) for a in range(60) for b in range(a) if a % 15 == b % 15]
    genes = names[:45]
    result = maps.recall_at_fpr(v, names, pairs, 0.05, genes)
    cosine = maps.relate(v[:45])
    known, unrelated = [], []
    for a in range(45):
        for b in range(a):
            (known if a % 15 == b % 15 else unrelated).append(cosine[a, b])
    threshold = min(t for t in unrelated if np.mean(np.array(unrelated) > t + 1e-12) <= 0.05)
    assert result["n_unrelated"] == len(unrelated)
    assert result["threshold"] == pytest.approx(threshold, abs=1e-12)
    assert result["recall"] == np.mean(np.array(known) > threshold + 1e-12)
