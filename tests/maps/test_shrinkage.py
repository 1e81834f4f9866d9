"""Shrinkage TVN and within-replicate whitening against scikit-learn, a transcription in fp64, and noise."""

import numpy as np
import pandas as pd
import pytest
from sklearn.covariance import ledoit_wolf

from camae import maps
from camae.errors import CamaeError


def _screen(controls=40, perturbations=60, replicates=2, width=90, plates=4, effect=0.0, seed=0):
    """A screen with correlated noise: fewer controls and replicates than features. x, plate, control, perturbation."""
    rng = np.random.default_rng(seed)
    n = controls + perturbations * replicates
    name = np.array(["DMSO"] * controls + [f"p{i % perturbations:03d}" for i in range(n - controls)])
    plate = np.array([f"P{i}" for i in rng.permutation(n) % plates])
    color = rng.normal(size=(width, width)) * np.geomspace(3, 0.1, width)
    x = rng.normal(size=(n, width)) @ color + 5 * rng.normal(size=(plates, width))[pd.factorize(plate)[0]]
    own = rng.normal(size=(perturbations, width)) * effect
    x[controls:] += own[np.arange(n - controls) % perturbations]
    return x, plate, name == "DMSO", name


def _standardized(x, plate, control):
    """Step 1, written out."""
    z = x.copy()
    for name in np.unique(plate):
        rows = plate == name
        z[rows] = (x[rows] - x[rows & control].mean(0)) / x[rows & control].std(0)
    return z


def _inverse_root(covariance, strength):
    mean = np.trace(covariance) / len(covariance)
    values, vectors = np.linalg.eigh((1 - strength) * covariance + strength * mean * np.eye(len(covariance)))
    return vectors / np.sqrt(values) @ vectors.T


@pytest.mark.parametrize("width", [20, 90])  # more and fewer rows to fit on than features
@pytest.mark.parametrize("strength", [0.3, 1.0, "ledoit_wolf"])
def test_shrinkage_tvn_is_its_formula(width, strength):
    x, plate, control, _ = _screen(width=width)
    z = _standardized(x, plate, control)
    residual = np.concatenate(
        [z[control & (plate == p)] - z[control & (plate == p)].mean(0) for p in np.unique(plate)]
    )
    aligner = maps.ShrunkTVN(strength).fit(x, plate, control)
    assert strength in ("ledoit_wolf", aligner.strength_)
    expected = z @ _inverse_root(residual.T @ residual / (40 - 4), aligner.strength_)
    # Condition numbers under 1e4 of sums of 90 terms.
    np.testing.assert_allclose(aligner.transform(x, plate), expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(
        maps.align(x, "tvn_shrunk", plate, control, shrinkage=strength), expected, rtol=0, atol=1e-9
    )
    assert aligner.rank_ == width


@pytest.mark.parametrize("width", [20, 200])
def test_ledoit_wolf_strength_is_that_of_scikit_learn_on_differences_of_duplicates(width):
    """With two replicates each, (x1 - x2) / sqrt(2) are the independent rows that the residuals stand for."""
    x, plate, control, name = _screen(width=width)
    z = _standardized(x, plate, control)
    first, second = z[40:100], z[100:160]
    assert (name[40:100] == name[100:160]).all()
    covariance, strength = ledoit_wolf((first - second) / np.sqrt(2), assume_centered=True)
    aligner = maps.ReplicateWhitening(folds=0).fit(x, plate, control, perturbation=name)
    assert aligner.strength_ == pytest.approx(strength, abs=1e-12)
    values, vectors = np.linalg.eigh(covariance)  # scikit-learn shrinks it already
    expected = z @ (vectors / np.sqrt(values)) @ vectors.T
    np.testing.assert_allclose(aligner.transform(x, plate), expected, rtol=0, atol=1e-9)


def test_ledoit_wolf_strength_of_many_controls_is_that_of_scikit_learn():
    """Residuals about a mean of n rows: scikit-learn divides by n, here by n - 1, so both agree to 1 / n."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4000, 30)) @ rng.normal(size=(30, 30))
    control = np.ones(4000, bool)
    _, strength = ledoit_wolf(_standardized(x, np.full(4000, ""), control))
    found = maps.ShrunkTVN().fit(x, control=control).strength_
    assert found == pytest.approx(strength, rel=2 / 4000 * 5)


def test_a_perturbation_is_mapped_by_the_replicates_of_other_folds():
    x, plate, control, name = _screen()
    aligner = maps.ReplicateWhitening(shrinkage=0.2).fit(x, plate, control, perturbation=name)
    z = aligner.transform(x, plate, name)
    # Its own replicates changed, its step 1 the same: only rows of its own fold stay as they are.
    own = name == "p007"
    changed = x.copy()
    changed[own] += np.random.default_rng(5).normal(size=x[own].shape) * 20
    again = maps.ReplicateWhitening(shrinkage=0.2).fit(changed, plate, control, perturbation=name)
    same = np.abs(again.transform(x, plate, name) - z).max(axis=1) < 1e-12
    assert same[own].all()
    assert 0 < same[~control].mean() < 0.5
    whole = np.abs(again.transform(x, plate) - aligner.transform(x, plate)).max(axis=1)
    assert (whole > 1e-9).all()


def test_on_noise_replicates_are_retrieved_only_where_the_whitening_saw_them():
    """What cross-validation is for: a covariance fitted on the evaluated replicates draws them together."""
    x, plate, control, name = _screen(controls=160, perturbations=80, width=200, seed=3)
    meta = pd.DataFrame({"name": name, "plate": plate, "control": control})

    def retrieved(**options):
        z = maps.align(x, "replicate_whitening", plate, control, perturbation=name, shrinkage=0.02, **options)
        hits = maps.retrieval(z, meta, "name", [], [], "control", query=~control, seed=0)
        return (hits.p_value < 0.05).mean(), hits.average_precision.mean()

    fitted, mean_fitted = retrieved(folds=0)
    crossed, mean_crossed = retrieved()
    # 5 % by chance: of 80 groups a binomial 99.9 % bound of .14.
    assert crossed < 0.14
    assert fitted > 0.5
    assert mean_fitted > 3 * mean_crossed


def test_on_noise_recall_is_chance_and_few_controls_do_no_harm():
    """Known pairs of noise: 10 %. With an effect, shrinkage finds more than all components of TVN."""
    found = {}
    for effect in (0.0, 1.0):
        x, plate, control, _ = _screen(controls=48, perturbations=120, width=160, effect=effect, seed=8)
        name = np.array(["DMSO"] * 48 + [f"p{i % 120:03d}" for i in range(240)])
        if effect:  # pairs p2k, p2k+1 share an effect
            rng = np.random.default_rng(0)
            x[48:] += (
                6 * rng.normal(size=(60, 160))[np.arange(240) % 120 // 2] @ np.diag(np.geomspace(0.1, 1, 160))
            )
        pairs = [(f"p{2 * k:03d}", f"p{2 * k + 1:03d}") for k in range(60)]
        for method, options in [
            ("tvn", {"components": None}),
            ("tvn_shrunk", {}),
            ("replicate_whitening", {}),
        ]:
            m = maps.map_profiles(x, name, plate, control, method, **options)
            found[method, effect] = maps.recall(m.vectors, m.names, pairs)["recall"].iloc[0]
    for method in ("tvn_shrunk", "replicate_whitening"):
        assert found[method, 0.0] < 0.1 + 3 * np.sqrt(0.09 / 60)
        assert found[method, 1.0] >= found["tvn", 1.0]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_bad_input_is_one_sentence():
    x, plate, control, _ = _screen()
    singles = np.where(control, "DMSO", np.arange(len(x)).astype(str))
    for call, message in [
        (lambda: maps.ShrunkTVN(0), "shrinkage must be 'ledoit_wolf' or a number above 0, up to 1, got 0"),
        (lambda: maps.align(x, "tvn_shrunk", plate, control, shrinkage=1.5), "up to 1, got 1.5"),
        (lambda: maps.align(x, "tvn_shrunk", plate), "tvn_shrunk is fitted on negative controls"),
        (lambda: maps.align(x, "replicate_whitening", plate, control), "is fitted on replicates; give pert"),
        (
            lambda: maps.align(x, "replicate_whitening", plate, control, perturbation=singles),
            "0 of 120 perturbations have two or more replicates",
        ),
        (lambda: maps.ReplicateWhitening(folds=1), "folds must be 0 or a whole number of at least 2, got 1"),
        (
            lambda: maps.align(x[:2], "tvn_shrunk", None, control[:2]),
            "leave 1 degrees of freedom for a covariance, at least 2 are needed",
        ),
        (
            lambda: maps.align(np.ones((9, 3)), "tvn_shrunk", None, np.ones(9, bool)),
            "the rows to fit on are all the same",
        ),
        (lambda: maps.align(x, "tvn", plate, control, shrinkage=0.3), "has no such option"),
    ]:
        with pytest.raises(CamaeError, match=message):
            call()
