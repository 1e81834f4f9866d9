"""A tiny model, saved and loaded as users would, and a folder of its own for Ray."""

import pandas as pd
import pytest
import torch

from camae.model import CAMAE, preset, save


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CAMAE(
        preset(
            "ca_mae_vit_ti16",
            width=32,
            heads=2,
            depth=2,
            crop=32,
            patch=8,
            layer_scale=0.5,
            channels=("DNA", "ER", "Mito"),
            decoder={"width": 32, "depth": 1, "heads": 4, "cross_heads": 4},
        )
    ).eval()


@pytest.fixture
def model_file(model, tmp_path):
    """The tiny model as a file."""
    return save(model, tmp_path / "model.safetensors")


@pytest.fixture
def long_screen(screen):
    """The screen five times over, as sites 1 to 5: 40 sites."""
    table = pd.read_csv(screen, dtype=str, keep_default_na=False)
    sites = [table.assign(Metadata_Site=str(i + 1)) for i in range(5)]
    path = screen.parent / "long.csv"
    pd.concat(sites).to_csv(path, index=False)
    return path
