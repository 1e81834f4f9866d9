"""A tiny model as a file, and a screen of four perturbations and controls on two plates."""

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch

from camae.model import CAMAE, preset, save

CHANNELS = ("DNA", "ER", "Mito")
GENES = ("gene0", "gene1", "gene2", "gene3")


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
    """labeled(lonely=False): a manifest of 2 plates, each of 4 genes x 2 wells and 3 controls; blobs are as wide as k.

    lonely: one more perturbation, in one well.
    """

    def write(lonely=False, plates=("P1", "P2"), channels=CHANNELS):
        rng, folder, rows = np.random.default_rng(0), tmp_path / "screen", []
        folder.mkdir()
        y, x = np.mgrid[:32, :32]
        for plate in plates:
            wells = [*GENES, *GENES, "DMSO", "DMSO", "DMSO"]
            if lonely and plate == plates[0]:
                wells.append("lonely")
            for w, name in enumerate(wells):
                row = {
                    "Metadata_Plate": plate,
                    "Metadata_Well": f"A{w + 1:02d}",
                    "Metadata_Site": "1",
                    "Metadata_Perturbation": name,
                    "Metadata_control_type": "negcon" if name == "DMSO" else "",
                }
                width = 2 + GENES.index(name) if name in GENES else 8
                for channel in channels:
                    blob = np.exp(-((y - 16) ** 2 + (x - 16) ** 2) / (2 * width**2))
                    plane = 500 + 3000 * blob + rng.normal(0, 60, (32, 32))
                    row[channel] = f"{plate}_{w}_{channel}.tif"
                    tifffile.imwrite(folder / row[channel], plane.clip(0).astype(np.uint16))
                rows.append(row)
        pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
        return folder / "manifest.csv"

    return write
