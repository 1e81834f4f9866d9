"""Activity by three measures: each against its definition, p against all exchanges of labels, and uniform on noise."""

import itertools

import numpy as np
import pandas as pd
import pytest

from camae import maps
from camae.errors import CamaeError
from camae.maps.label_exchange import Pool, whitened_products
from camae.maps.nulls import q_values


def screen(seed, n=4, controls=12, batches=2, d=6, shift=0.0, spread=1.0):
    """One perturbation of n rows and controls on plates that differ as a whole; correlated, heavy-tailed features."""
    rng = np.random.default_rng(seed)
    batch = np.concatenate([np.arange(n) % batches, np.arange(controls * batches) % batches])
    mix = np.random.default_rng(99).normal(size=(d, d))
    x = rng.standard_t(3, size=(len(batch), d)) @ mix + 5 * rng.normal(size=(batches, d))[batch]
    x[:n] = x[:n].mean(axis=0) + spread * (x[:n] - x[:n].mean(axis=0)) if spread != 1 else x[:n]
    x[:n] += shift
    return x, batch, n


def table(x, batch, n):
    control = np.arange(len(x)) >= n
    return x, np.where(control, "ctl", "pert"), control, batch.astype(str)


def test_each_measure_is_its_definition():
    from sklearn.covariance import ledoit_wolf

    x, batch, n = screen(0)
    x, by, control, plate = table(x, batch, n)
    row = maps.activity(x, by, control, plate, permutations=10).iloc[0]
    meta = pd.DataFrame({"by": by, "plate": plate, "control": control})
    ap = maps.average_precision(x, meta, "by", [], "plate", "control", query=~control)
    assert row.average_precision == pytest.approx(ap.average_precision.mean(), abs=1e-12)
    centered = x.copy()
    for b in np.unique(batch):
        centered[batch == b] -= x[batch == b].mean(axis=0)
    shift = np.mean([x[i] - x[control & (batch == batch[i])].mean(axis=0) for i in range(n)], axis=0)
    covariance, _ = ledoit_wolf(centered, assume_centered=True)
    assert row.mahalanobis == pytest.approx(np.sqrt(shift @ np.linalg.solve(covariance, shift)), rel=1e-9)
    energy = maps.magnitude(centered, by, control).magnitude[0]
    assert row.energy == pytest.approx(energy, rel=1e-9)
    assert (row.n_replicates, row.n_controls) == (4, 24)


def test_whitening_by_the_gram_matrix_is_that_of_the_covariance():
    from sklearn.covariance import ledoit_wolf

    for m, d in [(40, 5), (12, 60)]:
        x = np.random.default_rng(m).normal(size=(m, d)) * np.arange(1, d + 1)
        x -= x.mean(axis=0)
        covariance, _ = ledoit_wolf(x, assume_centered=True)
        expected = x @ np.linalg.solve(covariance, x.T)
        np.testing.assert_allclose(whitened_products(x @ x.T, d), expected, rtol=1e-9, atol=1e-9)


def test_p_values_are_shares_of_all_exchanges_of_labels():
    x, batch, n = screen(3, n=2, controls=6, batches=1, shift=1.0)
    pool = Pool(x, batch, n)
    choices = np.array(list(itertools.combinations(range(len(x)), n)))
    every, observed = pool.statistics(choices), pool.statistics()
    assert pool.arrangements == pytest.approx(len(choices))
    draws = 20_000
    p = pool.p_values(draws, draws, [0])
    for value, own, share in zip(every, observed, p, strict=True):
        exact = (value >= own[0] - 1e-9).mean()
        # A binomial share of the draws: 5 standard errors, and the 1 added to both counts.
        assert abs(share - exact) < 5 * np.sqrt(exact * (1 - exact) / draws) + 2 / draws
    # A choice's statistics are those of a screen in which its rows are the perturbation's.
    swapped = np.concatenate([x[[2, 5]], np.delete(x, [2, 5], axis=0)])
    at = next(i for i, choice in enumerate(choices) if set(choice) == {2, 5})
    for value, own in zip(every, Pool(swapped, batch, n).statistics(), strict=True):
        assert value[at] == pytest.approx(own[0], rel=1e-9)


def test_p_values_are_uniform_where_nothing_acts():
    """Independent screens of heavy-tailed, correlated features on plates that differ, one perturbation each."""
    p = []
    for seed in range(300):
        x, by, control, plate = table(*screen(seed))
        row = maps.activity(x, by, control, plate, permutations=100, seed=seed).iloc[0]
        p.append([row.average_precision_p_value, row.mahalanobis_p_value, row.energy_p_value])
    # Dvoretzky, Kiefer and Wolfowitz with Massart's constant: sup |share of p <= a - a| > e has probability at most
    # 2 exp(-2 n e^2), 1e-4 for the three here; p in steps of 1 / 101 adds one step.
    bound = np.sqrt(np.log(2 * 3 / 1e-4) / (2 * len(p))) + 1 / 101
    for values in np.sort(np.array(p), axis=0).T:
        steps = np.arange(len(p) + 1) / len(p)
        assert np.abs(np.maximum(steps[1:] - values, values - steps[:-1])).max() < bound


def test_measures_disagree_where_they_should_and_say_so():
    rng = np.random.default_rng(0)
    d, wells = 8, 6
    kinds = {"nothing": 0, "shifted": 1, "wide": 2}
    by = np.repeat([*kinds, *["ctl"] * 10], wells)
    x = rng.normal(size=(len(by), d))
    x[by == "shifted"] += 4
    directions = rng.normal(size=(wells, d))
    x[by == "wide"] = 12 * directions / np.linalg.norm(directions, axis=1, keepdims=True)  # no two alike
    out = maps.activity(x, by, by == "ctl", threshold=0.01).set_index("perturbation")
    assert out.active_by["shifted"] == "all"
    assert out.active_by["nothing"] == "none"
    assert "energy" in out.active_by["wide"]
    assert out.average_precision_q_value["wide"] > 0.01
    np.testing.assert_allclose(out.energy_q_value, q_values(out.energy_p_value.to_numpy()))
    agreement = maps.activity_agreement(out.reset_index()).set_index("active_by")
    assert agreement.n.sum() == 3
    assert agreement.n["all"] == 1
    assert agreement.examples["all"] == "shifted"
    assert set(agreement.index) >= {"average precision only", "Mahalanobis and energy", "none"}


def test_single_replicates_sites_and_controls_elsewhere():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(24, 4))
    by = np.array(["one", "two", "two", "far", *["ctl"] * 20])
    plate = np.array(["p", "p", "p", "q", *["p"] * 20])
    with pytest.warns(UserWarning, match=r"1 rows are of batches without a control .*first: row 3"):
        out = maps.activity(x, by, by == "ctl", plate).set_index("perturbation")
    assert list(out.index) == ["one", "two"]
    assert np.isnan(out.average_precision_p_value["one"])
    assert out.smallest_p_value["one"] == pytest.approx(1 / 21)  # 21 choices of one well
    assert 0 < out.energy_p_value["one"] <= 1
    meta = pd.DataFrame({"Metadata_Plate": plate, "Metadata_Well": [f"A{i // 2 + 1:02d}" for i in range(24)]})
    with pytest.raises(CamaeError, match="sites of one well are no replicates"):
        maps.activity(x, by, by == "ctl", meta=meta)
    averaged = maps.activity(x, by, by == "ctl", meta=meta, unit="well")
    assert averaged.n_controls.tolist() == [10, 10, 10]


def test_controls_and_replicates_beyond_the_limits_are_left_out():
    x, by, control, plate = table(*screen(0, controls=30))
    out = maps.activity(x, by, control, plate, permutations=10, max_controls=20)
    assert out.n_controls[0] == 20
    out = maps.activity(x, by, control, plate, permutations=10, max_replicates=3)
    assert (out.n_replicates[0], out.n_controls[0]) == (3, 60)


def test_bad_input_is_one_sentence():
    x, by, control, _ = table(*screen(0))
    with pytest.raises(CamaeError, match="threshold 0 is not a false-discovery rate"):
        maps.activity(x, by, control, threshold=0)
    with pytest.raises(CamaeError, match="permutations 0 choose no labels; give 1 or more"):
        maps.activity(x, by, control, permutations=0)
    with pytest.raises(CamaeError, match="max_controls 0 and max_replicates 64 must be 1 or more"):
        maps.activity(x, by, control, max_controls=0)
    with pytest.raises(CamaeError, match="no perturbation has a control in its batch"):
        maps.activity(x, by, control, np.where(control, "a", "b"))
    with pytest.raises(CamaeError, match="the metadata has 3 rows and the embeddings 28"):
        maps.activity(x, by, control, meta=pd.DataFrame({"a": [1, 2, 3]}))


def test_random_groups_of_controls_are_calibrated_and_positions_are_not():
    rng = np.random.default_rng(0)
    plate, position = (a.ravel().astype(str) for a in np.meshgrid(range(4), range(40), indexing="ij"))
    layout = 2 * rng.normal(size=(40, 5))[position.astype(int)]  # what lies at one position looks alike
    x = rng.normal(size=(160, 5)) + layout
    control = np.ones(160, dtype=bool)
    found = maps.calibration(x, control, plate)
    assert found.test.nunique() == 6
    summary = maps.calibration_summary(found).set_index("test")
    assert (summary.n == 40).all()
    exact = ["query", "average_precision", "mahalanobis", "energy"]
    # The bound holds for independent p values with probability .99; the groups share their negatives.
    assert (summary.too_small[exact] < summary.bound[exact]).all()
    assert (summary.too_large[exact] < summary.bound[exact]).all()
    by_position = maps.calibration_summary(maps.calibration(x, control, plate, position)).set_index("test")
    assert (by_position.too_small[["query", "average_precision"]] > by_position.bound.iloc[0]).all()
    assert by_position.share_below_05["average_precision"] > 0.5


def test_calibration_summary_measures_the_distance_from_uniform():
    p = np.array([0.01, 0.02, 0.03, 0.9])
    row = maps.calibration_summary(pd.DataFrame({"test": "t", "p_value": p})).iloc[0]
    assert row.too_small == pytest.approx(0.72)  # three of four are at most .03
    assert row.too_large == pytest.approx(0.15)  # .9 with three of four below it
    assert (row.share_below_05, row.share_below_01) == (0.75, 0.25)
    assert row.bound == pytest.approx(np.sqrt(np.log(200) / 8))


def test_calibration_needs_groups():
    x, control = np.random.default_rng(0).normal(size=(9, 3)), np.arange(9) < 3
    with pytest.raises(CamaeError, match="no group of the 3 controls has two rows; calibration needs"):
        maps.calibration(x, control)
    with pytest.raises(CamaeError, match="no group of the controls has two rows; give groups such as"):
        maps.calibration(x, control, group=[f"w{i}" for i in range(9)])


def test_calibration_takes_all_rows_for_one_batch_by_default():
    x, control = np.random.default_rng(0).normal(size=(40, 4)), np.arange(40) < 24
    found = maps.calibration(x, control, permutations=20)
    assert len(found) > 0
    pd.testing.assert_frame_equal(found, maps.calibration(x, control, ["plate"] * 40, permutations=20))
