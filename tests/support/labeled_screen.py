"""A screen of four perturbations and controls on two plates, whose blobs are as wide as the perturbation's number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile

CHANNELS = ("DNA", "ER", "Mito")
GENES = ("gene0", "gene1", "gene2", "gene3")


def write_labeled(
    folder: Path,
    lonely: bool = False,
    plates: Sequence[str] = ("P1", "P2"),
    channels: Sequence[str] = CHANNELS,
    controls: int = 3,
) -> Path:
    """Manifest of 2 plates, each of 4 genes x 2 wells and the controls. lonely: one more perturbation, in one well."""
    rng, rows = np.random.default_rng(0), []
    folder.mkdir()
    y, x = np.mgrid[:32, :32]
    for plate in plates:
        wells = [*GENES, *GENES, *["DMSO"] * controls]
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
