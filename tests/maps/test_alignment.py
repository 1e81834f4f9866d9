"""Alignment against the installed reference packages, a direct transcription of Ando's TVN, and its own promises."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.linalg import fractional_matrix_power

from camae import maps
from camae.errors import CamaeError


@pytest.fixture
def plates():
    rng = np.random.default_rng(2)
    n, d = 1200, 24
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 3
    batch = np.array(list("abcd"))[rng.integers(0, 4, n)]
    x += np.array([0, 1, 2, 3])[np.searchsorted(list("abcd"), batch)][:, None]
    pert = np.where(rng.random(n) < 0.3, "ctl", rng.integers(0, 100, n).astype(str))
    return x, batch, pert == "ctl", pd.DataFrame({"pert": pert, "batch": batch})


def _up_to_sign(ours, theirs, tolerance=1e-6):
    sign = np.sign((ours * theirs).sum(axis=0))
    np.testing.assert_allclose(ours * sign, theirs, rtol=0, atol=tolerance)


def test_efaar_parity(plates, efaar):
    x, batch, control, meta = plates
    tvn = efaar.align.tvn_on_controls(x.copy(), meta, "pert", "ctl", "batch")
    _up_to_sign(maps.align(x, "tvn", batch, control), tvn)
    _up_to_sign(
        maps.align(x, "tvn", None, control), efaar.align.tvn_on_controls(x.copy(), meta, "pert", "ctl")
    )
    _up_to_sign(
        maps.align(x, "standardize", batch), efaar.align.centerscale_by_batch(x.copy(), meta, "batch")
    )
    on_controls = efaar.align.centerscale_on_controls(x.copy(), meta, "pert", "ctl", "batch")
    _up_to_sign(maps.align(x, "standardize", batch, control), on_controls)
    theirs = efaar.align.embed_by_pca(x.copy(), meta, variance_or_ncomp=10)
    _up_to_sign(maps.align(maps.align(x, "standardize"), "pca", components=10), theirs)
    np.testing.assert_allclose(
        maps.aggregate(x, meta.pert, "mean"), efaar.align.aggregate(x, meta, "pert").features, atol=1e-12
    )


@pytest.mark.parametrize("kind", ["ZCA", "PCA", "ZCA-cor", "PCA-cor"])
def test_pycytominer_parity(plates, kind):
    operations = pytest.importorskip("pycytominer.operations", reason="pycytominer is a test-only reference")
    x = plates[0]
    theirs = np.asarray(operations.Spherize(method=kind).fit(pd.DataFrame(x)).transform(pd.DataFrame(x)))
    _up_to_sign(maps.align(x, "spherize", kind=kind), theirs)
    theirs = np.asarray(operations.RobustMAD().fit(pd.DataFrame(x)).transform(pd.DataFrame(x)))
    np.testing.assert_allclose(maps.align(x, "robustize_mad"), theirs, atol=1e-9)


def test_ando_is_its_transcription(plates):
    x, batch, control, _ = plates
    y = (x - x[control].mean(0)) / x[control].std(0)
    y = (y - y[control].mean(0)) @ np.linalg.svd(y[control] - y[control].mean(0))[2].T
    for name in "abcd":
        rows = batch == name
        y[rows] = (y[rows] - y[rows & control].mean(0)) / y[rows & control].std(0)
    recolor = fractional_matrix_power(np.cov(y[control].T) + 0.5 * np.eye(24), 0.5)
    for name in "abcd":
        rows = batch == name
        whiten = fractional_matrix_power(np.cov(y[rows & control].T) + 0.5 * np.eye(24), -0.5)
        y[rows] = y[rows] @ whiten @ recolor
    _up_to_sign(maps.align(x, "tvn_ando", batch, control), y)


@pytest.mark.parametrize("method", maps.METHODS)
@pytest.mark.parametrize("few", [False, True])  # few: fewer controls than features in every batch
def test_fit_then_transform_equals_align_and_survives_the_disk(plates, method, few, tmp_path):
    x, batch, control, meta = plates
    if method == "none":
        np.testing.assert_array_equal(maps.align(x, "none"), x)
        return
    if few:
        control = control & (np.cumsum(control) % 9 == 0)
    aligner = {
        "center": maps.Center,
        "standardize": maps.Standardize,
        "pca": maps.PCA,
        "pca_standardize": maps.PCAStandardize,
        "tvn": maps.TVN,
        "tvn_ando": maps.TVNAndo,
        "tvn_shrunk": maps.ShrunkTVN,
        "replicate_whitening": maps.ReplicateWhitening,
        "spherize": maps.Spherize,
        "robustize_mad": maps.RobustizeMAD,
    }[method]()
    unit, pert = None if method == "spherize" else batch, meta.pert.to_numpy(str)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = maps.align(x, method, unit, control, perturbation=pert)
        aligner.fit(x, unit, control, perturbation=pert)
    assert expected.shape == (1200, aligner.rank_)
    # The two ways of applying a low-rank factor differ by rounding: 24-term sums, condition number under 1e4.
    np.testing.assert_allclose(aligner.transform(x, unit, pert), expected, rtol=0, atol=1e-9)
    loaded = maps.load_aligner(maps.save_aligner(aligner, tmp_path / "a"))
    # Same numbers in another memory order: sums of 24 terms may round differently.
    np.testing.assert_allclose(
        loaded.transform(x[:50], batch[:50], pert[:50]),
        aligner.transform(x[:50], batch[:50], pert[:50]),
        rtol=0,
        atol=1e-11,
    )
    single = aligner.transform(x.astype(np.float32), unit, pert)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, atol=2e-3 * np.abs(expected).max())


def test_null_components_are_dropped_with_a_warning_that_names_the_rank():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 60))
    control = np.arange(200) < 30
    with pytest.warns(UserWarning, match="span 29 of 60 dimensions"):
        tvn = maps.TVN().fit(x, control=control)
    assert tvn.rank_ == 29
    z = tvn.transform(x)
    # No column dominates: before, the null component reached 1e15 and held all of the norm.
    assert (z**2).mean(axis=0).max() < 100 * (z**2).mean()


def test_constant_columns_stay_finite(plates):
    x, batch, control, meta = plates
    x[:, 3] = 1e6 + 0.1
    for method in maps.METHODS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            unit = None if method == "spherize" else batch
            z = maps.align(x, method, unit, control, perturbation=meta.pert)
        assert np.isfinite(z).all()
        assert method == "none" or np.abs(z).max() < 1e3


def test_held_out_controls_are_disjoint_and_cover_every_batch(plates):
    _, batch, control, _ = plates
    fit, held = maps.split_controls(control, batch, held_out=0.4, seed=1)
    assert not (fit & held).any()
    assert ((fit | held) == control).all()
    for name in "abcd":
        share = held[batch == name].sum() / control[batch == name].sum()
        assert abs(share - 0.4) < 0.02


def test_bad_input_is_one_sentence(plates, tmp_path):
    x, batch, control, _ = plates
    for call, message in [
        (lambda: maps.align(x, "combat"), "unknown alignment 'combat'"),
        (lambda: maps.align(x, "tvn", batch), "give control="),
        (lambda: maps.align(x, "tvn", batch, np.zeros(1200, bool)), "no row is marked"),
        (lambda: maps.align(x, "tvn", batch, control & (batch != "b")), "batch 'b' has 0 negative controls"),
        (
            lambda: maps.align(x, "tvn", batch, np.arange(1200) == np.argmax(batch == "a")),
            "at least 2 are needed",
        ),
        (lambda: maps.TVN().fit(x, batch, control).transform(x, np.full(1200, "z")), "batch z was not seen"),
        (lambda: maps.TVN().fit(x, batch, control).transform(x), "give batch="),
        (
            lambda: maps.TVN().fit(x, batch, control).transform(x[:, :5], batch),
            "fitted on 24 features, x has 5",
        ),
        (lambda: maps.TVN().transform(x), "is not fitted"),
        (lambda: maps.align(x, "tvn", batch[:5], control), "one label for each of the 1200 rows"),
        (lambda: maps.align(x, "tvn", batch, control.astype(int)), "one boolean for each"),
        (lambda: maps.align(np.where(x == x[4, 2], np.nan, x), "center"), "row 4, column 2"),
        (lambda: maps.align(x, "center", [None, *batch[1:]]), "batch is missing in row 0"),
        (lambda: maps.align(x.tolist(), "pca", sizes=3), "no such option"),
        (lambda: maps.load_aligner(tmp_path), "does not exist"),
    ]:
        with pytest.raises(CamaeError, match=message) as caught:
            call()
        assert str(caught.value).count(". ") == 0


@pytest.mark.parametrize("method", ["tvn", "tvn_ando"])
def test_without_eps_the_controls_of_each_batch_are_white(method):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)) + 3
    batch, control = np.repeat(["a", "b"], 100), np.tile(np.arange(100) < 60, 2)
    z = maps.align(x, method, batch, control, eps=0)
    near = maps.align(x, method, batch, control, eps=1e-8)
    # Variances v near 1 enter as (v + eps)^(-1/2): a share eps / 2v of each value, which are under 6.
    np.testing.assert_allclose(z, near, rtol=0, atol=1e-7)
    if method == "tvn":
        for name in ("a", "b"):
            np.testing.assert_allclose(np.cov(z[control & (batch == name)].T), np.eye(6), atol=1e-10)
    few = np.tile(np.arange(100) < 5, 2)
    with pytest.raises(
        CamaeError, match=r"batch 'a': eps=0 leaves the covariance of 5 controls in 6 components"
    ):
        maps.align(x, method, batch, few, eps=0)
    twice = np.r_[np.tile(x[:3], (7, 1)), x[:100]]  # 21 controls of batch a, of rank 2
    batch, control = np.repeat(["a", "b"], [21, 100]), np.ones(121, bool)
    with pytest.raises(CamaeError, match="singular; give an eps above 0, more controls, or fewer components"):
        maps.align(twice, method, batch, control, eps=0)
