"""Training-free baselines of the demo, its negative control (shuffled labels) and its upper limit (the true factors).

What no training can be credited with: statistics that a few lines of NumPy take from the pixels, the number of cells,
where a well lies on its plate. The trained encoder is compared with the best of them.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from camae.dataloader.manifest import Manifest
from camae.dataloader.read_pixels import read_site
from camae.embedding.pieces import count_pieces
from camae.embedding_table import by_well, make_table
from camae.reproduction.demo.cells import sample_cells
from camae.reproduction.demo.generate_screen import plate_name
from camae.reproduction.demo.screen_design import (
    COLUMNS,
    ROWS,
    design,
    plate_layout,
    stream,
    well_factors,
    well_name,
)
from camae.reproduction.demo.screen_parameters import FACTORS, ScreenParameters

Array = npt.NDArray[np.float64]
SCALES = (1, 2, 4, 8)  # px over which planes are averaged before gradients are taken
_NUCLEUS_SCALE = 4  # px; a nucleus is about 40 px wide


def texture_statistics(planes_CHW: npt.NDArray[np.integer | np.floating]) -> Array:
    """Gradient statistics of self-standardized planes: (C * 8,) float64.

    Each plane is brought to mean 0 and standard deviation 1, as the encoder sees it, so that intensity is gone. For
    each channel and each of `SCALES`: mean and population standard deviation of the gradient's magnitude, after
    averaging over squares of that many pixels.
    """
    found = []
    for plane_HW in planes_CHW.astype(np.float64):
        standard_HW = (plane_HW - plane_HW.mean()) / max(plane_HW.std(), 1e-9)
        for scale in SCALES:
            coarse = block_means(standard_HW, scale)
            magnitude = np.hypot(np.diff(coarse, axis=0)[:, :-1], np.diff(coarse, axis=1)[:-1])
            found += [magnitude.mean(), magnitude.std()]
    return np.array(found)


def cell_statistics(dna_HW: npt.NDArray[np.integer | np.floating]) -> Array:
    """Number of nuclei and the share of the field that they cover, (2,): connected pixels above Otsu's threshold."""
    coarse = block_means(dna_HW.astype(np.float64), _NUCLEUS_SCALE)
    mask = coarse > otsu(coarse)
    return np.array([count_pieces(mask), mask.mean()])


def block_means(plane_HW: Array, scale: int) -> Array:
    """Means over squares of `scale` px; rows and columns that fill no square are left out."""
    height, width = (length // scale for length in plane_HW.shape)
    cut = plane_HW[: height * scale, : width * scale]
    return cut.reshape(height, scale, width, scale).mean((1, 3))


def otsu(values: Array) -> float:
    """Otsu's threshold: the one of 256 that makes the variance between the two classes largest (Otsu 1979)."""
    counts, edges = np.histogram(values, 256)
    centers = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)[:-1]
    above = below[-1] + counts[-1] - below
    total = np.cumsum(counts * centers)
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (total[:-1] / below - (total[-1] - total[:-1]) / above) ** 2
    return float(edges[1 + int(np.nanargmax(between))])


def pixel_baselines(manifest: Manifest) -> dict[str, pd.DataFrame]:
    """Tables of wells of "texture" (`texture_statistics`) and "cells" (`cell_statistics`), mean over sites."""
    channels = list(manifest.channels)
    texture, cells = [], []
    for row in range(len(manifest)):
        planes_CHW = read_site(manifest, row, channels)[0]
        texture.append(texture_statistics(planes_CHW))
        cells.append(cell_statistics(planes_CHW[channels.index("DNA")]))
    metadata = manifest.table.filter(regex="^Metadata_")
    tables = {"texture": np.stack(texture), "cells": np.stack(cells)}
    return {name: by_well(make_table(metadata, vectors)) for name, vectors in tables.items()}


def position_table(wells: pd.DataFrame) -> pd.DataFrame:
    """Table of where each well lies on its plate: row, column, their squares, and the distance from the rim."""
    names = {well_name(index): index for index in range(ROWS * COLUMNS)}
    row_N, column_N = np.divmod([names[well] for well in wells["Metadata_Well"]], COLUMNS)
    rim_N = np.minimum.reduce([row_N, column_N, ROWS - 1 - row_N, COLUMNS - 1 - column_N])
    vectors_ND = np.stack([row_N, column_N, row_N**2, column_N**2, rim_N], axis=1)
    return make_table(wells.filter(regex="^Metadata_"), vectors_ND.astype(np.float64))


def shuffled_labels(wells: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The same vectors with the perturbations of each plate dealt out anew; negative controls stay controls."""
    rng = np.random.default_rng(seed)
    labels = wells["Metadata_Perturbation"].to_numpy(dtype=object, copy=True)
    control = (wells["Metadata_control_type"] == "negcon").to_numpy()
    plates = wells["Metadata_Plate"].to_numpy(str)
    for plate in np.unique(plates):
        rows = np.flatnonzero((plates == plate) & ~control)
        labels[rows] = labels[rng.permutation(rows)]
    return wells.assign(Metadata_Perturbation=labels)


def oracle_table(wells: pd.DataFrame, screen: Path) -> pd.DataFrame:
    """Table of the true factor values of the cells in each well, mean over sites: the most that images can say.

    screen: folder of the generated screen, whose `screen.json` has the generator's parameters.
    """
    values = json.loads((screen / "screen.json").read_text(encoding="utf-8"))
    known = {field.name for field in fields(ScreenParameters)}
    plain: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known
    }
    parameters = ScreenParameters(**plain)
    plates = {plate_name(plate): plate for plate in range(parameters.plates)}
    names = {well_name(index): index for index in range(ROWS * COLUMNS)}
    vectors = [
        np.mean(
            [true_factors(parameters, plates[plate], names[well], s) for s in range(parameters.sites)], axis=0
        )
        for plate, well in zip(wells["Metadata_Plate"], wells["Metadata_Well"], strict=True)
    ]
    return make_table(wells.filter(regex="^Metadata_"), np.stack(vectors))


def true_factors(parameters: ScreenParameters, plate: int, well: int, site: int) -> Array:
    """Mean factor values of the cells inside a field, (12,), as `generate_screen.render_site` gives them, undrawn."""
    content = plate_layout(parameters, plate)[well]
    effect_F = design(parameters).effect_PF[content] if content >= 0 else np.zeros(len(FACTORS))
    factors_F = well_factors(parameters, plate, well, effect_F)
    cells = sample_cells(stream(parameters.seed, 7, plate, well, site), factors_F, parameters)
    shown_N = cells.visible_N if cells.visible_N.any() else slice(None)
    return cells.factors_NF[shown_N].mean(axis=0, dtype=np.float64)
