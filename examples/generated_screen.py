"""A small generated screen on which the examples run: TIFFs named as ImageXpress names them, and a table of wells.

Cells are discs with a nucleus and a texture; the two genes of a complex change size and texture in the same way.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import tifffile

# (size of a cell, frequency of its texture in 1/px) of each complex; two genes each.
COMPLEXES = [(size, frequency) for size in (0.65, 1.0, 1.5) for frequency in (0.15, 0.4, 0.8, 1.4)]
GENES = {f"GENE{i + 1}{copy}": effect for i, effect in enumerate(COMPLEXES) for copy in "AB"}
CONTROL = (0.9, 0.6)


def write_screen(folder: Path, plates: int = 2, size: int = 192) -> Path:
    """`<plate>_<well>_s1_w<channel>.tif` (uint16, `size` px), `wells.csv` and `known_pairs.csv` in `folder`.

    Every plate has two wells of each gene and 24 wells of negative controls ("NTC").
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for plate in range(plates):
        rng = np.random.default_rng(plate)
        contents = rng.permutation([*GENES, *GENES, *["NTC"] * 24])
        gain = rng.uniform(0.8, 1.3, 3)  # a batch effect: how brightly each plate was stained
        for i, gene in enumerate(contents):
            well = f"{'ABCDEFGH'[i // 9]}{i % 9 + 1:02d}"
            for c, plane in enumerate(_site(rng, size, *GENES.get(gene, CONTROL))):
                image = rng.poisson(100 + gain[c] * plane).clip(0, 65535).astype(np.uint16)
                tifffile.imwrite(folder / f"plate{plate + 1}_{well}_s1_w{c + 1}.tif", image)
            rows.append((f"plate{plate + 1}", well, gene, "negcon" if gene == "NTC" else ""))
    names = ["Metadata_Plate", "Metadata_Well", "Metadata_Perturbation", "Metadata_control_type"]
    pd.DataFrame(rows, columns=names).to_csv(folder / "wells.csv", index=False)
    known = [(name, name[:-1] + "B") for name in GENES if name.endswith("A")]
    pd.DataFrame(known, columns=["a", "b"]).to_csv(folder / "known_pairs.csv", index=False)
    return folder


def _site(rng: np.random.Generator, size: int, cell: float, frequency: float) -> np.ndarray:
    """(3, size, size): nuclei, textured cell bodies, and rims."""
    y, x = np.mgrid[:size, :size]
    planes = np.full((3, size, size), 30.0)
    for cy, cx in rng.uniform(0, size, (size * size // 1200, 2)):
        distance = np.hypot(y - cy, x - cx) / (9 * cell * rng.uniform(0.9, 1.1))
        pattern = 1 + 0.8 * np.sin(frequency * (y - cy)) * np.sin(frequency * (x - cx))
        planes[0] += 500 * np.exp(-((2 * distance) ** 4))
        planes[1] += 300 * np.exp(-(distance**4)) * pattern
        planes[2] += 350 * np.exp(-(((distance - 1) * 4) ** 2))
    return planes
