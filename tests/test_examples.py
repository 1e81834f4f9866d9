"""The examples run as they are, on their generated images, and print what they promise."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, *arguments, timeout=300):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_embed_a_folder(tmp_path):
    said = run("embed_a_folder", "--out", tmp_path)
    assert "Manifest(72 sites, 1 plates, 72 wells, 0 perturbations, channels=['w1', 'w2', 'w3']" in said
    assert len(pd.read_parquet(tmp_path / "embeddings" / "wells.parquet")) == 72
    # Images and a model of one's own.
    again = run(
        *("embed_a_folder", "--images", tmp_path / "images", "--model", tmp_path / "model"),
        *("--out", tmp_path / "again", "--pattern", r"(?P<well>[A-P]\d\d)_s(?P<site>\d)_(?P<channel>w[12])"),
    )
    assert "channels=['w1', 'w2']" in again


def test_train_on_your_own(tmp_path):
    said = run("train_on_your_own", "--out", tmp_path, "--steps", 20)
    assert "after step 20" in said
    assert (tmp_path / "run" / "reconstructions.png").is_file()
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.filterwarnings("ignore")
def test_map_of_biology(tmp_path):
    said = run("map_of_biology", "--out", tmp_path)
    assert "recall" in said
    assert "cosine" in said
    wells = tmp_path / "embeddings" / "wells.parquet"
    assert (
        run("map_of_biology", "--embeddings", wells, "--pairs", tmp_path / "images" / "known_pairs.csv")
        in said
    )
