"""The demo's and the paper's maps on the device are those of NumPy, and nothing of them moves to the host by itself."""

import numpy as np
import pandas as pd
import pytest
from device_arrays import Device, namespace

from camae.dataloader.manifest import Manifest
from camae.kernels.arrays.backends import ArrayBackend, array_backend
from camae.reproduction.demo.evaluate import SYSTEMS
from camae.reproduction.demo.evaluate import evaluate as evaluate_demo
from camae.reproduction.paper import paper_figures, paper_tables
from camae.reproduction.paper.evaluate_system import Outcome, Plan
from camae.reproduction.paper.evaluate_system import _evaluated as evaluate_system
from camae.reproduction.paper.paper_systems import SIZES

NAMES = [f"p{i:02d}" for i in range(20)]
PAIRS = np.array([(NAMES[5 + i], NAMES[12 + i]) for i in range(7)])
DEVICE = ArrayBackend("cupy", namespace, "stand-in")

pytestmark = pytest.mark.filterwarnings("ignore")


def wells(seed):
    """Table of 120 wells on two plates, 30 of them controls."""
    table = pd.DataFrame(
        np.random.default_rng(seed).normal(size=(120, 6)), columns=[f"emb_{i:04d}" for i in range(6)]
    )
    table.insert(0, "Metadata_Plate", [f"P{i // 60}" for i in range(120)])
    table.insert(1, "Metadata_Well", [f"{'ABCDEF'[i % 60 // 10]}{i % 10 + 1:02d}" for i in range(120)])
    table.insert(2, "Metadata_Perturbation", [NAMES[i % 20] for i in range(120)])
    table.insert(3, "Metadata_control_type", ["negcon" if i % 20 < 5 else "" for i in range(120)])
    return table


def test_demo(tmp_path):
    tables = {name: [wells(i)] for i, name in enumerate(SYSTEMS)}
    found = evaluate_demo(tables, PAIRS, tmp_path / "device", DEVICE)
    host = evaluate_demo(tables, PAIRS, tmp_path / "host", array_backend("numpy"))
    assert found.pop("arrays") == "cupy (stand-in)"
    assert host.pop("arrays").startswith("numpy (")
    assert found == host
    for name in ("recall_curves.csv", "relationships.csv"):
        pd.testing.assert_frame_equal(
            pd.read_csv(tmp_path / "device" / name), pd.read_csv(tmp_path / "host" / name)
        )
    vectors = [pd.read_parquet(tmp_path / kind / "map.parquet").iloc[:, 1:] for kind in ("device", "host")]
    np.testing.assert_allclose(*vectors, atol=1e-6)


def test_paper(tmp_path):
    system = next(s for s in SIZES["smallest"] if s.family == "random")

    def tables(arrays):
        site = pd.DataFrame({"Metadata_Plate": ["P"], "Metadata_Well": ["A01"], "DNA": ["a.tif"]})
        plan = Plan(Manifest(site), tmp_path, {"known": PAIRS}, {}, arrays=arrays)
        outcome = evaluate_system(Outcome(system, "done", wells=wells(0), facts={"run": "r"}), plan)
        assert isinstance(outcome.mapped.vectors, Device if arrays is DEVICE else np.ndarray)
        made = [
            paper_tables.alignment_table([outcome], plan.pairs),
            paper_tables.recall_table([outcome], ["known"], "screen"),
            paper_tables.retrieval_table([outcome], None, 99),
            paper_tables.gene_set_table([outcome], plan.pairs, {"set": NAMES}),
        ]
        return [table.rows for table in made], paper_figures._recall_curves([outcome], PAIRS)

    (found, curve), (host, host_curve) = tables(DEVICE), tables(array_backend("numpy"))
    assert found == host
    pd.testing.assert_frame_equal(curve, host_curve)
