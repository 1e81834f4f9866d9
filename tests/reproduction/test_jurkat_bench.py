"""Bench of Jurkat cells: balanced accuracy, its standard error, folds, kept arrays; rows of the demo's screens."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from camae.errors import CamaeError

PHASES = np.repeat(["G1", "G2", "M"], (60, 30, 10))


@pytest.fixture(scope="module")
def bench(bench_module):
    return bench_module("jurkat_probe")


def test_balanced_accuracy_is_sklearns(bench):
    rng = np.random.default_rng(0)
    told = np.where(rng.random(100) < 0.7, PHASES, "G1")
    value = bench.balanced((told == PHASES).astype(float), PHASES)
    assert value == pytest.approx(balanced_accuracy_score(PHASES, told), abs=1e-12)


def test_standard_error_is_that_of_cells_drawn_within_phases(bench):
    """Against the bootstrap within phases, whose variance is (n - 1) / n of the formula's for a phase of n cells.

    5 %: a standard deviation of 4,000 draws has a relative error of 1 / sqrt(2 * 4,000) = 1.1 %.
    """
    rng = np.random.default_rng(1)
    gain_N = rng.choice([-1.0, 0.0, 1.0], 100, p=(0.1, 0.6, 0.3))
    parts = [gain_N[p == PHASES] for p in np.unique(PHASES)]
    drawn = [np.mean([rng.choice(part, len(part)).mean() for part in parts]) for _ in range(4000)]
    shrunk = np.sqrt(sum(np.var(p) / len(p) for p in parts)) / 3
    assert bench.standard_error(gain_N, PHASES) >= shrunk
    assert np.std(drawn) == pytest.approx(shrunk, rel=0.05)
    formula = np.sqrt(sum(np.var(p, ddof=1) / len(p) for p in parts)) / 3
    assert bench.standard_error(gain_N, PHASES) == pytest.approx(formula, rel=1e-12)


def test_hits_are_of_cells_that_were_not_fitted_on(bench):
    """Features without signal but with one dimension for every cell: fitted cells are told, held-out ones are not."""
    hit_N, fold_N = bench.jurkat.held_out_hits(np.eye(100), PHASES, c=100.0)
    assert np.bincount(fold_N).tolist() == [34, 33, 33]
    assert bench.balanced(hit_N, PHASES) < 0.5
    scores = bench.jurkat.probe(np.eye(100), PHASES, c=100.0)
    assert np.mean(scores) == pytest.approx(
        np.mean([bench.balanced(hit_N[fold_N == f], PHASES[fold_N == f]) for f in range(3)])
    )


def test_kept_arrays_are_made_once(bench, tmp_path):
    made = []

    def make():
        made.append(1)
        return {"x": np.arange(3)}

    for _ in range(2):
        assert bench.kept(tmp_path / "a" / "x.npz", make)["x"].tolist() == [0, 1, 2]
    assert len(made) == 1


def test_a_run_of_one_screen_has_no_row_of_several(bench_module, tmp_path):
    rows = bench_module("demo_screens")
    (tmp_path / "summary.json").write_text(json.dumps({"recall": {}}))
    with pytest.raises(CamaeError, match="is a run of one screen; make one with camae demo --screens 5"):
        rows.row_of(tmp_path)
