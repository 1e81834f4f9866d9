"""The benchmark command on a small screen, from files to the results folder, and its readers."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from camae import maps
from camae.cli import app
from camae.embedding_table import feature_columns
from camae.errors import CamaeError, MissingBackendError, MissingFileError
from camae.reproduction.benchmark.run_benchmark import run_benchmark


@pytest.fixture(scope="module")
def screen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("screen")
    rng = np.random.default_rng(0)
    pert = np.tile([f"G{i % 40:02d}" if i < 80 else "DMSO" for i in range(96)], 4)
    plate = np.repeat([f"P{i}" for i in range(4)], 96)
    center = np.concatenate([np.repeat(rng.normal(size=(20, 12)), 2, axis=0), np.zeros((1, 12))])
    code = np.where(pert == "DMSO", 40, [int(p[1:]) if p != "DMSO" else 0 for p in pert])
    x = (
        center[code]
        + 0.7 * rng.normal(size=(384, 12))
        + rng.normal(size=(4, 12))[np.repeat(np.arange(4), 96)]
    )
    table = pd.DataFrame(x.astype(np.float32), columns=feature_columns(12))
    table.insert(0, "Metadata_Plate", plate)
    table.insert(1, "Metadata_Well", np.tile([f"{r}{c:02d}" for r in "ABCDEFGH" for c in range(1, 13)], 4))
    table.insert(2, "Metadata_Perturbation", pert)
    table.insert(3, "Metadata_control_type", np.where(pert == "DMSO", "negcon", "trt"))
    table.insert(4, "Metadata_target", [f"T{c // 2}" if c < 40 else None for c in code])
    table.insert(5, "Metadata_Experiment", np.where(plate < "P2", "E0", "E1"))
    table.to_parquet(folder / "good.parquet", index=False)
    features = feature_columns(12)
    noise = table.assign(**dict(zip(features, rng.normal(size=(12, 384)), strict=True)))
    noise.to_csv(folder / "noise.csv.gz", index=False)
    (folder / "pairs").mkdir()
    lines = [f"G{2 * i:02d},G{2 * i + 1:02d}" for i in range(20)]
    (folder / "pairs" / "Twins.txt").write_text("\n".join(["entity1,entity2", *lines, "G00,nobody"]))
    (folder / "pairs" / "LICENSE.txt").write_text("some words\nof a license\n")
    genes = [f"G{i:02d}" for i in range(40)]
    arms = pd.DataFrame({"gene": genes, "chrom_arm_name": ["chr1p"] * 25 + ["chr2q"] * 15})
    arms.to_csv(folder / "arms.csv", index=False)
    pd.DataFrame({"gene": genes, "zfpkm": -5.0}).to_csv(folder / "expression.csv", index=False)
    return folder


def test_a_benchmark_of_two_models_side_by_side(screen, tmp_path):
    result = run_benchmark(
        {"good": screen / "good.parquet", "noise": screen / "noise.csv.gz"},
        screen / "pairs",
        tmp_path / "out",
        experiment="Metadata_Experiment",
        target="Metadata_target",
        arms=screen / "arms.csv",
        expression=screen / "expression.csv",
        null_size=500,
    )
    assert json.loads((tmp_path / "out" / "benchmark.json").read_text()) == result
    table = pd.read_csv(tmp_path / "out" / "table2.csv").set_index(["model", "alignment"])
    assert len(table) == 22  # 9 of the paper and 2 for few controls, of 2 models
    assert (table.n_pairs == 20).all()
    assert (table.n_unknown == 1).all()
    tvn = table.xs("TVN", level="alignment")
    assert tvn.recall["good"] > 0.9
    # 20 pairs at the chance of 0.10: under 0.45 with probability 1 - 1e-5.
    assert tvn.recall["noise"] < 0.45
    assert set(pd.read_csv(tmp_path / "out" / "table3.csv").step) == {"TVN", "TVN, arms corrected"}
    bias = pd.read_csv(tmp_path / "out" / "arm_bias.csv")
    assert set(bias.arm) == {"all", "chr1p", "chr2q"}
    found = (
        pd.read_csv(tmp_path / "out" / "table4.csv")
        .set_index(["model", "task", "alignment"])
        .fraction_retrieved
    )
    assert found["good", "perturbations", "TVN"] > 0.7
    # Eight controls a plate are few for 12 dimensions, and half of them are held out.
    assert 0.3 < found["good", "perturbations", "TVN, held out"] <= found["good", "perturbations", "TVN"]
    assert found["noise", "perturbations", "as given"] <= 0.10
    assert found["good", "siblings", "TVN"] > 0.5
    assert {"section.html", "benchmark.html", "curves.csv"} <= {p.name for p in (tmp_path / "out").iterdir()}
    page = (tmp_path / "out" / "benchmark.html").read_text()
    assert page.count("<svg") == 3  # recall against percentile, and the calibration of two models
    assert "TVN, arms corrected" in page


def test_the_rows_of_table_3_at_the_shell(screen, tmp_path):
    tables = [f"--arms={screen / 'arms.csv'}", f"--expression={screen / 'expression.csv'}"]
    for options, steps in (
        (["--tvn", "--arm-correction", *tables], {"TVN", "TVN, arms corrected"}),
        (["--no-arm-correction", *tables], {"TVN"}),
        (["--no-tvn", "--no-activity"], None),
    ):
        out = tmp_path / str(steps)
        done = CliRunner().invoke(
            app,
            [
                "benchmark",
                str(screen / "good.parquet"),
                f"--pairs={screen / 'pairs'}",
                f"--out={out}",
            ]
            + options,
        )
        assert done.exit_code == 0, done.output
        table = out / "table3.csv"
        assert (set(pd.read_csv(table).step) if table.exists() else None) == steps


def test_profiles_read_the_same_from_every_format(screen, tmp_path):
    meta, x = maps.read_profiles(screen / "good.parquet")
    assert x.shape == (384, 12)
    assert x.dtype == np.float32
    table = pd.concat([meta, pd.DataFrame(x, columns=feature_columns(12))], axis=1)
    for name in ("a.csv", "a.csv.gz"):
        table.to_csv(tmp_path / name, index=False)
    table.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    for name in ("a.csv", "a.csv.gz", "a.tsv"):
        again, y = maps.read_profiles(tmp_path / name)
        np.testing.assert_allclose(y, x, rtol=1e-6)
        assert again.Metadata_Well.tolist() == meta.Metadata_Well.tolist()


def test_profiles_read_from_anndata(screen, tmp_path):
    anndata = pytest.importorskip("anndata")
    meta, x = maps.read_profiles(screen / "good.parquet")
    obs = meta.rename(columns=lambda name: name.removeprefix("Metadata_")).fillna("").astype(str)
    obs.index = obs.index.astype(str)
    anndata.AnnData(x, obs=obs).write_h5ad(tmp_path / "a.h5ad")
    again, y = maps.read_profiles(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(y, x)
    assert again.Metadata_Plate.astype(str).tolist() == meta.Metadata_Plate.tolist()


def test_bad_input_is_one_sentence(screen, tmp_path, monkeypatch):
    good, pairs, out = screen / "good.parquet", screen / "pairs", tmp_path / "never"
    table = pd.read_parquet(good)
    table.assign(Metadata_Well="A01").to_parquet(tmp_path / "twice.parquet", index=False)
    table.assign(emb_0003="x").to_csv(tmp_path / "text.csv", index=False)
    (tmp_path / "empty").mkdir()
    monkeypatch.setitem(sys.modules, "cupy", None)
    for call, kind, message in [
        (lambda: run_benchmark([tmp_path / "no.parquet"], pairs, out), MissingFileError, "does not exist"),
        (
            lambda: run_benchmark([good], tmp_path / "empty", out),
            CamaeError,
            "holds no file with two columns",
        ),
        (
            lambda: run_benchmark([good], pairs, out, plate="Metadata_Batch"),
            CamaeError,
            "no column Metadata_Batch",
        ),
        (lambda: run_benchmark([good], pairs, out, negative="DMSO"), CamaeError, "says 'DMSO' nowhere"),
        (
            lambda: run_benchmark([tmp_path / "twice.parquet"], pairs, out),
            CamaeError,
            "Plate P0, Well A01 occurs more",
        ),
        (
            lambda: run_benchmark([tmp_path / "text.csv"], pairs, out),
            CamaeError,
            r"line 2, column 'emb_0003': 'x' is not a number",
        ),
        (
            lambda: run_benchmark([good], pairs, out, arms=screen / "arms.csv"),
            CamaeError,
            "needs both tables",
        ),
        (lambda: run_benchmark([good], pairs, out, arm_correction=True), CamaeError, "needs two gene tables"),
        (
            lambda: run_benchmark([good], pairs, out, backend="cupy"),
            MissingBackendError,
            "CuPy is not installed",
        ),
        (lambda: run_benchmark([good], pairs, out, backend="gpu"), CamaeError, "unknown backend"),
        (lambda: run_benchmark([], pairs, out), CamaeError, "no embeddings"),
        (lambda: maps.read_profiles(screen / "arms.xlsx"), MissingFileError, "does not exist"),
        (lambda: maps.read_expression(screen / "arms.csv"), CamaeError, "lacks the column zfpkm"),
    ]:
        with pytest.raises(kind, match=message):
            call()
    assert not out.exists()
