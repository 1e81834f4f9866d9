"""A tiny CA-MAE in fp64 and images for it."""

import pytest
import torch

from camae.model import CAMAE, preset

CHANNELS = ("DNA", "ER", "RNA", "AGP", "Mito", "Brightfield")


@pytest.fixture
def tiny():
    """Build a tiny model: `tiny(block="sequential")`."""

    def build(**changes):
        torch.manual_seed(0)
        decoder = {"width": 32, "depth": 1, "heads": 4, "cross_heads": 4} | changes.pop("decoder", {})
        options = {"width": 32, "heads": 2, "depth": 3, "crop": 32, "patch": 8, "layer_scale": 0.5}
        options |= {"channels": CHANNELS, "drop_path": 0.0} | changes
        return CAMAE(preset("ca_mae_vit_ti16", decoder=decoder, **options)).eval()

    return build


@pytest.fixture
def image():
    """Random uint16 planes: `image(3)` is (3, 32, 32)."""

    def make(channels, seed=0, size=32, dtype=torch.uint16):
        generator = torch.Generator().manual_seed(seed)
        high = 255 if dtype == torch.uint8 else 60000
        return torch.randint(0, high, (channels, size, size), generator=generator, dtype=torch.int64).to(
            dtype
        )

    return make
