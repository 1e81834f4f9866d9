"""A tiny model file for the commands that need one."""

import pytest
import torch

from camae.model import CAMAE, preset, save


@pytest.fixture
def model_file(tmp_path):
    """A model of 32-px crops, as a file."""
    torch.manual_seed(0)
    small = {"width": 32, "heads": 2, "depth": 2, "crop": 32, "patch": 8, "layer_scale": 0.5}
    decoder = {"width": 32, "depth": 1, "heads": 4, "cross_heads": 4}
    config = preset("ca_mae_vit_ti16", channels=("DNA", "ER", "Mito"), decoder=decoder, **small)
    return save(CAMAE(config), tmp_path / "model.safetensors")
