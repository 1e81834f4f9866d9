"""Comparison of runs, in Python and at the shell."""

import pytest
from typer.testing import CliRunner

from camae.cli import app
from camae.errors import CamaeError
from camae.training.compare_runs import compare_runs


def test_runs_side_by_side(screen, tmp_path, train):
    a = train(screen, tmp_path / "a", 3, val="plate")
    b = train(screen, tmp_path / "b", 4, lr=1e-3)
    table = compare_runs([a.path, b.path], tmp_path / "compared")
    assert list(table.columns) == ["a", "b"]
    assert table.loc["steps"].tolist() == [3, 4]
    assert table.loc["loss (last tenth)", "b"] == pytest.approx(b.history[-1]["loss"])
    assert table.loc["val_loss (last)", "a"] == pytest.approx(a.history[-1]["val_loss"])
    assert table.loc["setting lr", "b"] == "0.001"
    assert "setting batch_size" not in table.index
    assert (tmp_path / "compared" / "curves.png").stat().st_size > 1000
    assert "setting lr" in (tmp_path / "compared" / "compare.csv").read_text()


def test_runs_compare_at_the_shell(screen, tmp_path, train):
    for name in ("a", "b"):
        train(screen, tmp_path / name, 2)
    result = CliRunner().invoke(app, ["runs", "compare", str(tmp_path / "a"), str(tmp_path / "b")])
    assert result.exit_code == 0
    assert "crops_per_second" in result.output


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(CamaeError, match="not a run of camae"):
        compare_runs([tmp_path])
