"""mantispy's own `io.validate` accepts AnnData files of sites, wells and treatments as they are; its tools run on them.

mantispy needs Python 3.12 and an environment of its own (`bench/competitors/requirements-scverse.txt`);
CAMAE_SCVERSE_PYTHON names its interpreter.
"""

import os
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from camae.embedding import to_anndata
from camae.embedding_table import make_table

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("CAMAE_SCVERSE_PYTHON")


def metadata(control, perturbation="Metadata_Perturbation"):
    """Two plates of 48 wells: 4 wells of each of 8 genes and 16 controls on each."""
    words = {"Gallery": "Metadata_control_type", "own": "Metadata_Control_Type"}
    genes = [*(f"g{i % 8}" for i in range(32)), *["DMSO"] * 16] * 2
    wells = [f"{'ABCDEF'[i // 8]}{i % 8 + 1:02d}" for i in range(48)] * 2
    table = pd.DataFrame(
        {"Metadata_Plate": ["P1"] * 48 + ["P2"] * 48, "Metadata_Well": wells, perturbation: genes}
    )
    kinds = {"negcon": "negcon", "": "trt" if control == "own" else ""}
    table[words[control]] = [kinds["negcon" if g == "DMSO" else ""] for g in genes]
    return table


@pytest.mark.skipif(PYTHON is None, reason="CAMAE_SCVERSE_PYTHON names no environment with mantispy")
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")
def test_mantispy_accepts_every_kind_of_table(tmp_path):
    rng = np.random.default_rng(0)
    wells = metadata("Gallery")
    sites = pd.concat([wells.assign(Metadata_Site=str(i)) for i in (1, 2)], ignore_index=True)
    tables = {
        "wells": wells,
        "words": metadata("own").assign(Metadata_Batch="B1", Metadata_Gene=None),
        "gene": metadata("Gallery", "Metadata_Gene"),
        "sites": sites,
        "regions": pd.concat([sites.assign(Metadata_Cell_X=str(x)) for x in (5, 9)], ignore_index=True),
        "treatments": pd.DataFrame({"Metadata_Perturbation": [f"g{i}" for i in range(8)]}),
    }
    files = []
    for name, table in tables.items():
        files.append(tmp_path / f"{name}.h5ad")
        to_anndata(make_table(table, rng.normal(size=(len(table), 6))), files[-1])
    command = [str(PYTHON), str(ROOT / "bench" / "competitors" / "validate.py"), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert "not valid" not in done.stdout, done.stdout
    assert done.stdout.count(": valid") == len(files), done.stdout + done.stderr
    assert "  pp.tvn: ran" in done.stdout
    assert done.returncode == 0, done.stdout  # no tool failed
