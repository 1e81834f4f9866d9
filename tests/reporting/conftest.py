"""A run folder with every piece a report looks for, small."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import camae
from camae.embedding_table import make_table, write_table

SYSTEMS = ("random", "pixel", "untrained", "trained")


@pytest.fixture
def run_folder(tmp_path):
    return build_run(tmp_path / "my-run")


@pytest.fixture(scope="module")
def complete_page(tmp_path_factory):
    """The report of a run with every piece."""
    return camae.report(build_run(tmp_path_factory.mktemp("complete") / "my-run"))


def build_run(run):
    rng = np.random.default_rng(0)
    model = run / "models" / "seed-0"
    model.mkdir(parents=True)
    log = [{"step": s, "loss": 1 / s, "crops": 8 * s, "crops_per_second": 4.0} for s in range(1, 21)]
    log[-1]["val_loss"] = 0.25
    (model / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log) + '{"step": 21, "lo')
    record = {
        "model": {"name": "ca_mae_vit_ti16", "channels": ["DNA", "ER"]},
        "device": "cpu",
        "parameters": 1234567,
    }
    (model / "run.json").write_text(json.dumps(record))
    arrays = rng.random((3, 2, 2, 16, 16), dtype=np.float32)
    arrays[0, ..., :8] = np.nan
    kinds = dict(zip(("masked", "reconstruction", "original"), arrays, strict=True))
    np.savez(
        model / "reconstructions.npz",
        **kinds,
        labels=np.array(["negative control", "KRB3"]),
        channels=["DNA", "ER"],
    )
    shares = np.linspace(0.1, 0.9, 9)
    curves = [pd.DataFrame({"system": s, "percentile": shares, "recall": shares}) for s in SYSTEMS]
    pd.concat(curves).to_csv(run / "recall_curves.csv", index=False)
    names = [f"gene<{i}>" for i in range(6)]
    write_table(
        run / "map.parquet",
        make_table(pd.DataFrame({"Metadata_Perturbation": names}), rng.standard_normal((6, 4))),
        {},
    )
    strongest = pd.DataFrame(
        {"a": names[:3], "b": names[3:], "cosine": [0.9, -0.8, 0.7], "known": [True, False, True]}
    )
    strongest.to_csv(run / "relationships.csv", index=False)
    summary = {
        "wells": 288,
        "device": "cpu",
        "seconds": 431.0,
        "backends": {"tokenize": "reference"},
        "versions": {"torch": "2.13.0"},
        "recall": {system: {"value": 0.1 * (i + 1), "se": 0.02} for i, system in enumerate(SYSTEMS)},
        "recall_without_alignment": {system: {"value": 0.1, "se": 0.02} for system in SYSTEMS},
        "trained_minus_untrained": {"value": 0.1, "se": 0.04},
    }
    (run / "summary.json").write_text(json.dumps(summary))
    return run
