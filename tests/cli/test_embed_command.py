"""`camae embed` at the shell: what it says and writes, and that a second writer is refused in one sentence."""

import os

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from camae.cli import app
from camae.errors import CamaeError
from camae.locks import writing


def run(*arguments):
    result = CliRunner().invoke(
        app, ["embed", *map(str, arguments)], catch_exceptions=False, env={"COLUMNS": "500"}
    )
    assert result.exit_code == 0
    return result.output


def test_table_and_anndata(screen, model_file, tmp_path):
    pytest.importorskip("anndata")
    out = tmp_path / "emb"
    said = run(screen, "--model", model_file, "--out", out, "--anndata", "--layers", "-1", "--device", "cpu")
    assert "8 wells embedded" in said
    assert (out / "wells.parquet").exists()
    assert (out / "wells.h5ad").exists()


def test_a_rank_says_that_the_table_comes_later(screen, model_file, tmp_path):
    command = [
        screen,
        "--model",
        model_file,
        "--out",
        tmp_path / "emb",
        "--sites-per-shard",
        "2",
        "--world",
        "2",
    ]
    assert "4 sites embedded as rank 1 of 2" in run(*command, "--rank", "1")
    assert not (tmp_path / "emb" / "wells.parquet").exists()
    assert "8 wells embedded" in run(*command, "--rank", "0")


def vectors(out):
    table = pd.read_parquet(out / "wells.parquet").sort_values(["Metadata_Plate", "Metadata_Well"])
    return table.filter(like="emb_").to_numpy()


@pytest.mark.parametrize(
    "options",
    [["--linear", "float32"], ["--linear", "bfloat16"], pytest.param(["--compile"], marks=pytest.mark.full)],
    ids=["float32", "bfloat16", "compile"],
)
def test_accelerated_models_embed_a_screen(screen, model_file, tmp_path, options):
    common = [screen, "--model", model_file, "--device", "cpu"]
    run(*common, "--out", tmp_path / "plain")
    assert "8 wells embedded" in run(*common, "--out", tmp_path / "fast", *options)
    plain, fast = vectors(tmp_path / "plain"), vectors(tmp_path / "fast")
    if "bfloat16" not in options:
        np.testing.assert_allclose(fast, plain, atol=2e-5)  # fp32 sums in another order
        return
    cosines = (plain * fast).sum(1) / np.linalg.norm(plain, axis=1) / np.linalg.norm(fast, axis=1)
    assert cosines.min() > 0.9999  # as in test_speed.py
    assert not np.array_equal(plain, fast)


def test_forms_of_a_model_are_outputs_of_their_own(screen, model_file, tmp_path):
    command = [screen, "--model", model_file, "--out", tmp_path / "emb", "--device", "cpu"]
    assert "8 wells embedded" in run(*command, "--bag-of-channels")
    with pytest.raises(CamaeError, match="another model, model_hash"):
        run(*command, "--linear", "float32")
    with pytest.raises(CamaeError, match="Ray workers load the model as it is"):
        run(
            screen,
            "--model",
            model_file,
            "--out",
            tmp_path / "emb",
            "--ray-workers",
            "1",
            "--bag-of-channels",
        )


def test_refusals(screen, model_file, tmp_path):
    command = [screen, "--model", model_file, "--out", tmp_path / "emb"]
    with pytest.raises(CamaeError, match="leave out device, rank and world"):
        run(*command, "--ray-workers", "2", "--device", "cpu")
    with (
        writing(tmp_path / "emb"),
        pytest.raises(CamaeError, match=f"being written by process {os.getpid()}"),
    ):
        run(*command)
