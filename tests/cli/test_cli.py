"""The shell: the main job end to end on a tiny screen, and one sentence with an exit code for bad input."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

CAMAE = str(Path(sys.executable).parent / "camae")
TINY = [
    *("--set", "model_options.crop=32", "--set", "model_options.patch=8", "--set", "model_options.width=32"),
    *("--set", "model_options.heads=2", "--set", "model_options.depth=1", "--set", "batch_size=4"),
    *("--set", "model_options.decoder={width=32, depth=1, heads=4, cross_heads=4}", "--set", "val=plate"),
]


def camae(*arguments, cwd=None):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(
        [CAMAE, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, env=environment
    )


def test_train_embed_map_report(screen, tmp_path):
    trained = camae(
        "train", screen, "--out", tmp_path / "run", "--model", "ca_mae_vit_ti16", "--steps", 3, *TINY
    )
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "run" / "reconstructions.png").stat().st_size > 1000
    assert (tmp_path / "run" / "loss.png").stat().st_size > 1000
    embedded = camae("embed", screen, "--model", tmp_path / "run", "--out", tmp_path / "emb")
    assert embedded.returncode == 0, embedded.stderr
    assert "8 wells embedded" in embedded.stdout
    assert len(pd.read_parquet(tmp_path / "emb" / "wells.parquet")) == 8
    (tmp_path / "pairs.csv").write_text("a,b\ngene0,gene2\n")
    mapped = camae(
        "map", tmp_path / "emb" / "wells.parquet", tmp_path / "pairs.csv", "--out", tmp_path / "top.csv"
    )
    assert mapped.returncode == 0, mapped.stderr
    assert "recall" in mapped.stdout
    assert list(pd.read_csv(tmp_path / "top.csv"))[:3] == ["a", "b", "cosine"]
    reported = camae("report", tmp_path / "run")
    assert reported.returncode == 0, reported.stderr
    assert (tmp_path / "run" / "report.html").read_text().startswith("<!")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("train", "nowhere", "--out", "run"), "nowhere"),
        (("embed", "{screen}", "--model", "nowhere", "--out", "emb"), "nowhere: no such model"),
        (("train", "{screen}", "--out", "run", "--set", "steps"), "write it as name=value"),
        (("train", "{screen}", "--out", "run", "--set", "color=1"), "unknown training settings color"),
        (("train", "{screen}", "--out", "run", "--model", "resnet"), "no model preset 'resnet'"),
        (("train", "{screen}", "--out", "run", "--model", "ca_mae_vit_ti16", "--steps", "1"), "larger than"),
        (("map", "nowhere.parquet", "pairs.csv"), "nowhere.parquet does not exist"),
    ],
)
def test_bad_input_is_one_sentence_and_a_code(screen, tmp_path, arguments, sentence):
    done = camae(*(a.format(screen=screen) for a in arguments), cwd=tmp_path)
    assert done.returncode not in (0, None)
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
