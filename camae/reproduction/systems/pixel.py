"""Pixel-intensity statistics, the paper's weakest baseline: no model.

The paper compares with "30 different pixel intensity statistics"; it does not list them. Here: six per channel,
30 for the five Cell Painting stains, on stored values without any standardization.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from camae.dataloader.backends.native import plane_moments
from camae.dataloader.manifest import Manifest
from camae.dataloader.read_pixels import read_site
from camae.embedding_table import by_well, make_table
from camae.errors import CamaeError

PERCENTILES = (10, 50, 90, 99)
STATISTICS = ("mean", "std", *(f"p{p}" for p in PERCENTILES))


def pixel_statistics(planes_CHW: npt.NDArray[np.integer | np.floating]) -> npt.NDArray[np.float64]:
    """Six intensity statistics of every plane, in gray levels.

    planes_CHW: (C, H, W), uint8, uint16 or float. Returns (C * 6,) float64: for each channel in turn the mean,
    the population standard deviation and the 10th, 50th, 90th and 99th percentile (linear interpolation).
    Raises CamaeError for another shape or dtype.
    """
    planes_CHW = np.asarray(planes_CHW)
    if planes_CHW.ndim != 3 or planes_CHW.size == 0:
        raise CamaeError(f"pixel statistics need planes of shape (C, H, W), got {planes_CHW.shape}")
    if planes_CHW.dtype not in (np.uint8, np.uint16) and planes_CHW.dtype.kind != "f":
        raise CamaeError(f"pixel statistics need uint8, uint16 or float planes, got {planes_CHW.dtype}")
    moments_C2 = plane_moments(planes_CHW)
    ranks_CP = np.percentile(planes_CHW.reshape(len(planes_CHW), -1), PERCENTILES, axis=1).T
    return np.concatenate([moments_C2[:, :1], np.sqrt(moments_C2[:, 1:]), ranks_CP], axis=1).ravel()


def pixel_table(manifest: Manifest) -> pd.DataFrame:
    """Table of pixel statistics of every well (mean over its sites), beside its `Metadata_*` columns.

    Features are ordered by channel, then as in `STATISTICS`. Raises CamaeError for a site without some channel.
    """
    channels = list(manifest.channels)
    vectors_ND = np.stack(
        [pixel_statistics(read_site(manifest, row, channels)[0]) for row in range(len(manifest))]
    )
    metadata = manifest.table.filter(regex="^Metadata_")
    return by_well(make_table(metadata, vectors_ND))
