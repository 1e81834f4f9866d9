"""Jurkat cells of imaging flow cytometry: montages cut to cells, their cell-cycle phases, and a linear probe of them.

Images: the example images of MLCP (github.com/minh-doan/MLCP, folder `images`); data of Blasi et al., "Label-free cell
cycle analysis for high-throughput imaging flow cytometry", Nature Communications 7 (2016). Each montage is a grid of
cells 40 x 40 px of one phase and channel, filled up by repeating cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from camae.dataloader.manifest import Manifest

SIDE = 40  # pixels
CHANNELS = {"Brightfield": "Ch3", "DNA": "Ch4", "Darkfield": "Ch6"}
FOLDS = 3
LABELED = "Experiment_1"  # the experiment with cells of every phase


@dataclass(frozen=True)
class Cells:
    """Cells without exact duplicates, in the order of their files.

    planes_NCHW: (N, 3, 40, 40) uint16, in the order of `CHANNELS`. phase_N: (N,) str, one of seven phases.
    experiment_N: (N,) str; all cells of the second experiment are in G1, the first has all phases.
    """

    planes_NCHW: np.ndarray
    phase_N: np.ndarray
    experiment_N: np.ndarray

    def __len__(self) -> int:
        return len(self.phase_N)


def read_cells(folder: str | Path) -> Cells:
    """The cells of `folder`/Experiment_*/<phase>/Ch*_*.tif; of equal cells (all channels) the first is kept."""
    planes, phases, experiments = [], [], []
    for first in sorted(Path(folder).glob("Experiment_*/*/Ch3_*.tif")):
        files = [first.with_name(first.name.replace("Ch3", number)) for number in CHANNELS.values()]
        planes.append(np.stack([_tiles(tifffile.imread(file)) for file in files], axis=1))
        phases += [first.parent.name] * len(planes[-1])
        experiments += [first.parts[-3]] * len(planes[-1])
    if not planes:
        raise FileNotFoundError(f"{folder} holds no Experiment_*/<phase>/Ch3_*.tif")
    planes_NCHW = np.concatenate(planes)
    _, kept = np.unique(planes_NCHW.reshape(len(planes_NCHW), -1), axis=0, return_index=True)
    kept.sort()
    return Cells(planes_NCHW[kept], np.array(phases)[kept], np.array(experiments)[kept])


def _tiles(montage_HW: np.ndarray) -> np.ndarray:
    """(n, 40, 40) cells of a montage, row by row."""
    rows, columns = (edge // SIDE for edge in montage_HW.shape)
    return montage_HW.reshape(rows, SIDE, columns, SIDE).swapaxes(1, 2).reshape(-1, SIDE, SIDE)


def pixel_features(planes_NCHW: np.ndarray) -> np.ndarray:
    """(N, 6 C) fp64 baseline: mean, sd, largest and three percentiles of each plane's stored values."""
    pixels_NCP = planes_NCHW.reshape(*planes_NCHW.shape[:2], -1).astype(np.float64)
    percentiles = np.moveaxis(np.percentile(pixels_NCP, (1, 50, 99), axis=2), 0, -1)
    moments = np.stack([pixels_NCP.mean(2), pixels_NCP.std(2), pixels_NCP.max(2)], axis=-1)
    return np.concatenate([moments, percentiles], axis=-1).reshape(len(planes_NCHW), -1)


def held_out_hits(
    features_ND: np.ndarray, phase_N: np.ndarray, *, seed: int = 0, c: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) bool, whether each cell's phase is told by a probe of the other two folds, and (N,) int64, its fold.

    Class-balanced logistic regression on features standardized as learned from the cells fitted on, three stratified
    folds. seed: of the folds. c: inverse strength of the L2 penalty.
    """
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    hit_N, fold_N = np.zeros(len(phase_N), bool), np.zeros(len(phase_N), np.int64)
    for fold, (fitted, held) in enumerate(folds.split(features_ND, phase_N)):
        model = LogisticRegression(C=c, class_weight="balanced", max_iter=2000)
        pipeline = make_pipeline(StandardScaler(), model).fit(features_ND[fitted], phase_N[fitted])
        hit_N[held], fold_N[held] = pipeline.predict(features_ND[held]) == phase_N[held], fold
    return hit_N, fold_N


def probe(features_ND: np.ndarray, phase_N: np.ndarray, *, seed: int = 0, c: float = 1.0) -> list[float]:
    """Balanced accuracy over the phases in each fold of `held_out_hits`."""
    hit_N, fold_N = held_out_hits(features_ND, phase_N, seed=seed, c=c)
    hits = pd.Series(hit_N)
    return [float(hits[fold_N == f].groupby(phase_N[fold_N == f]).mean().mean()) for f in range(FOLDS)]


def write_cells(cells: Cells, folder: str | Path) -> Manifest:
    """The cells as sites: a TIFF of three pages each in `folder`, and their manifest, also in `manifest.csv`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, (planes_CHW, phase) in enumerate(zip(cells.planes_NCHW, cells.phase_N, strict=True)):
        name = f"{i:05d}.tif"
        tifffile.imwrite(folder / name, planes_CHW, photometric="minisblack", metadata=None)
        pages = {channel: f"{name}#{page}" for page, channel in enumerate(CHANNELS)}
        rows.append({"Metadata_Cell": str(i), "Metadata_Phase": str(phase), **pages})
    table = pd.DataFrame(rows)
    table.to_csv(folder / "manifest.csv", index=False)
    return Manifest(table, folder)
