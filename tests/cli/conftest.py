"""A tiny model file for the commands that need one."""

import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from labeled_screen import write_labeled
from shell_commands import (
    commands,
)

from camae.cli import application, console
from camae.embedding_table import make_table, write_table
from camae.model import CAMAE, preset, save


@pytest.fixture
def model_file(tmp_path):
    """A model of 32-px crops, as a file."""
    torch.manual_seed(0)
    small = {"width": 32, "heads": 2, "depth": 2, "crop": 32, "patch": 8, "layer_scale": 0.5}
    decoder = {"width": 32, "depth": 1, "heads": 4, "cross_heads": 4}
    config = preset("ca_mae_vit_ti16", channels=("DNA", "ER", "Mito"), decoder=decoder, **small)
    return save(CAMAE(config), tmp_path / "model.safetensors")


@pytest.fixture
def shell(monkeypatch, capsys):
    """shell(*arguments): what `camae` does with them in this process: exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    console._noted.clear()

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["camae", *map(str, arguments)])
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            with pytest.raises(SystemExit) as ended:
                application.main()
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err

    return run


@pytest.fixture
def profiles(tmp_path):
    """profiles(name, plates, seed): a table of wells of two plates, in which gene0 and gene1 are alike."""

    def make(name="wells.parquet", plates=("P1", "P2"), seed=0, genes=None):
        rng = np.random.default_rng(seed)
        names = genes or [f"gene{i}" for i in range(8)]
        base = rng.normal(size=(len(names), 6)) * 3
        base[1] = base[0] + 0.1
        rows, vectors = [], []
        for plate in plates:
            for i in range(len(names) + 12):
                control = i >= len(names)
                rows.append(
                    {
                        "Metadata_Plate": plate,
                        "Metadata_Well": f"{'ABCD'[i // 12]}{i % 12 + 1:02d}",
                        "Metadata_Perturbation": "DMSO" if control else names[i],
                        "Metadata_control_type": "negcon" if control else "",
                        "Metadata_Target": "" if control else f"family{i // 2}",
                    }
                )
                vectors.append(rng.normal(size=6) * 0.5 + (0 if control else base[i]))
        path = tmp_path / name
        write_table(path, make_table(pd.DataFrame(rows), np.array(vectors)), {})
        return path

    return make


@pytest.fixture
def pairs(tmp_path):
    (tmp_path / "pairs.csv").write_text("a,b\ngene0,gene1\n")
    return tmp_path / "pairs.csv"


@pytest.fixture
def every(screen, model_file, profiles, pairs, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text('{"model": {"name": "m"}}')
    (run / "config.toml").write_text("steps = 2\n")
    (run / "log.jsonl").write_text(
        "".join(f'{{"step": {i}, "loss": {1 / i}, "crops": {i}}}\n' for i in (1, 2))
    )
    genes = {name: tmp_path / f"{name}.csv" for name in ("arms", "expression")}
    names = [f"gene{i}" for i in range(30)]  # an arm's bias is known from more than 20
    pd.DataFrame({"gene": names, "chrom_arm_name": ["chr1p"] * 24 + ["chr2q"] * 6}).to_csv(
        genes["arms"], index=False
    )
    pd.DataFrame({"gene": names, "zfpkm": -5.0}).to_csv(genes["expression"], index=False)
    # One perturbation is on one plate alone, so that there is something to leave out.
    labeled = write_labeled(tmp_path / "labeled", lonely=True, controls=5)
    return commands(screen, model_file, profiles(genes=names), pairs, run, genes, labeled)


@pytest.fixture
def plain_folder(tmp_path):
    """Three wells of two channels without labels, and a table of labels."""
    folder = tmp_path / "plate"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for well in ("A01", "A02", "B01"):
        for channel in ("DNA", "ER"):
            name = f"P1_{well}_s1_{channel}.tif"
            tifffile.imwrite(folder / name, rng.integers(0, 4000, (48, 48)).astype(np.uint16))
    (folder / "notes_of_the_day.tif").write_bytes(b"")
    (tmp_path / "labels.csv").write_text("Well,gene\na1,TP53\nA2,DMSO\nB1,water\n")
    return folder
