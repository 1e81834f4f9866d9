"""A tiny model as a file, and a screen of four perturbations and controls on two plates."""

import pytest
import torch
from labeled_screen import CHANNELS, write_labeled

from camae.model import CAMAE, preset, save


@pytest.fixture
def model_file(tmp_path):
    torch.manual_seed(0)
    decoder = {"width": 32, "depth": 1, "heads": 4, "cross_heads": 4}
    small = {"width": 32, "heads": 2, "depth": 3, "crop": 32, "patch": 8, "layer_scale": 0.5}
    config = preset("ca_mae_vit_ti16", channels=CHANNELS, decoder=decoder, **small)
    (tmp_path / "model").mkdir()
    return save(CAMAE(config), tmp_path / "model" / "model.safetensors")


@pytest.fixture
def labeled(tmp_path):
    """labeled(lonely=False): the manifest of such a screen; lonely: one more perturbation, in one well."""
    return lambda lonely=False, **options: write_labeled(tmp_path / "screen", lonely, **options)
