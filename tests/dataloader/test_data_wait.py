"""Training from TIFFs: how long it waits for data, by its own log."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import camae
from camae.dataloader import read_manifest


@pytest.mark.full
def test_training_waits_under_5_percent_for_data(tmp_path: Path) -> None:
    """The demo's screen, model and recipe: with a model that small, data are needed faster than by any real one."""
    from camae.reproduction.demo.generate_screen import generate
    from camae.reproduction.demo.run_demo import MODEL, MODEL_OPTIONS, RECIPE

    recipe = RECIPE | {"steps": 100, "checkpoint_every": 100}
    manifest = read_manifest(generate(tmp_path / "screen"))
    run = camae.train(manifest, MODEL, tmp_path / "run", quiet=True, model_options=MODEL_OPTIONS, **recipe)
    shares = [row["data_wait_share"] for row in run.history]
    print(
        "data_wait_share per logged interval:", np.round(shares, 4).tolist(), "mean", np.mean(shares).round(4)
    )
    assert len(shares) > 3
    assert np.mean(shares) < 0.05, shares
