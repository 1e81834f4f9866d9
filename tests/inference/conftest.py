"""A small CA-MAE, and images for it."""

import numpy as np
import pytest
import torch

from camae.model import CAMAE, preset

NAMES = ["DNA", "ER", "Mito"]


@pytest.fixture
def picture():
    """Random uint16 planes: `picture(2, seed=1)` is (2, 32, 32)."""

    def make(c=3, size=32, seed=0):
        return np.random.default_rng(seed).integers(0, 60000, (c, size, size)).astype(np.uint16)

    return make


@pytest.fixture
def build():
    """Build a model: widths that the C++ ops take, and LayerScale 0.5, so that every block counts in the vectors."""

    def make(**changes):
        torch.manual_seed(0)
        small = {"width": 64, "heads": 2, "depth": 4, "crop": 32, "patch": 8, "layer_scale": 0.5}
        decoder = {"width": 32, "depth": 1, "heads": 4, "cross_heads": 4}
        model = CAMAE(preset("ca_mae_vit_ti16", channels=NAMES, decoder=decoder, **(small | changes)))
        for name, parameter in model.named_parameters():
            if "bias" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        return model.eval()

    return make
