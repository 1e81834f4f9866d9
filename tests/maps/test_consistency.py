"""Consistency and magnitude against the EFAAR benchmarking package and the direct definition."""

import numpy as np
import pandas as pd
import pytest

from camae import maps
from camae.errors import CamaeError


@pytest.fixture
def wells():
    rng = np.random.default_rng(0)
    by = rng.integers(0, 40, 600).astype(str)
    by[:80] = "ctl"
    by[80] = "alone"
    return rng.normal(size=(600, 10)) + 0.3 * rng.normal(size=(41, 10))[pd.factorize(by)[0] % 41], by


def test_consistency_is_that_of_efaar(wells, efaar):
    x, by = wells
    null = [str(i) for i in range(15)]
    meta = pd.DataFrame({"pert": by})
    theirs = efaar.benchmark.pert_signal_consistency_benchmark(x, meta, "pert", null, n_jobs=1).set_index(
        "pert"
    )
    ours = maps.consistency(x, by, null).set_index("perturbation")
    rows = theirs.index[theirs.avgcossim.notna()]
    assert len(rows) > 20
    np.testing.assert_allclose(ours.consistency[rows], theirs.avgcossim[rows].astype(float), atol=1e-12)
    rest = rows[~rows.isin(null)]
    np.testing.assert_allclose(ours.p_value[rest], theirs.pval[rest].astype(float), atol=1e-12)
    assert np.isnan(ours.consistency["alone"])


def test_magnitude_is_that_of_efaar(wells, efaar):
    x, by = wells
    null = [str(i) for i in range(15)]
    meta = pd.DataFrame({"pert": by})
    theirs = efaar.benchmark.pert_signal_magnitude_benchmark(x, meta, "pert", null, "ctl", n_jobs=1)
    theirs = theirs[theirs.pert != "ctl"].set_index("pert").dropna()
    ours = maps.magnitude(x, by, by == "ctl", null).set_index("perturbation")
    # geomloss sums in fp32 for part of the way: 1e-5 of distances of about 5.
    np.testing.assert_allclose(ours.magnitude[theirs.index], theirs.edist.astype(float), atol=1e-4)


def test_constant_profiles_agree_perfectly_and_random_ones_not_at_all():
    by = np.repeat(["a", "b"], 50)
    assert maps.consistency(np.ones((100, 3)), by).consistency.tolist() == pytest.approx([1, 1], abs=1e-14)
    value = maps.consistency(np.random.default_rng(0).normal(size=(100, 200)), by).consistency
    # 1,225 pairs of cosines with variance 1 / 200 each: 5 standard errors.
    assert (value.abs() < 5 / np.sqrt(200 * 1225)).all()


def test_bad_input_is_one_sentence(wells):
    x, by = wells
    with pytest.raises(CamaeError, match="no perturbation has two replicates"):
        maps.consistency(x, np.arange(600).astype(str))
    with pytest.raises(CamaeError, match="null names nobody"):
        maps.consistency(x, by, ["nobody"])
    with pytest.raises(CamaeError, match="no row is marked"):
        maps.magnitude(x, by, np.zeros(600, bool))


@pytest.mark.parametrize("offset", [0, 1e6, 1e8])
def test_magnitude_does_not_depend_on_a_common_offset(offset):
    rng = np.random.default_rng(0)
    x, control = rng.normal(size=(60, 7)), np.arange(60) < 40
    by = np.where(control, "ctl", "p")
    x[~control] += 1

    def mean(a, b):
        return np.linalg.norm(a[:, None] - b[None], axis=2).mean()

    expected = (
        2 * mean(x[~control], x[control]) - mean(x[~control], x[~control]) - mean(x[control], x[control])
    )
    # Rows near the offset have an absolute error of 2^-53 times it; each distance is a difference of two of them.
    found = maps.magnitude(x + offset, by, control).magnitude[0]
    assert found == pytest.approx(expected, abs=1e-12 + 20 * offset * 2.0**-53)
