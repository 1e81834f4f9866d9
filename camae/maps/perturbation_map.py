"""From a table of wells to one vector per perturbation, as every map, recall and report starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from camae.embedding_table import features_of, read_table
from camae.errors import CamaeError
from camae.maps.aggregation import aggregate, perturbation_names
from camae.maps.alignment import align

# Negative controls per component kept when a principal-component alignment has fewer controls than it needs:
# a covariance from about as many controls as features whitens their noise, not the batch effect.
CONTROLS_PER_COMPONENT = 2
_FITS_COMPONENTS = ("pca", "pca_standardize", "tvn", "tvn_ando")


@dataclass(frozen=True)
class ScreenMap:
    """vectors: (n, k), one row per perturbation, origin at the negative controls. names: (n,) in that order.

    options: what the alignment was given, the number of components it was limited to among them.
    """

    vectors: np.ndarray
    names: np.ndarray
    options: dict[str, Any]


def map_screen(
    wells: pd.DataFrame | str | Path,
    method: str = "tvn",
    *,
    batch: str = "Metadata_Plate",
    perturbation: str = "Metadata_Perturbation",
    control: str = "Metadata_control_type",
    **options: Any,
) -> ScreenMap:
    """Align wells by plate on the negative controls, then take the spherical mean of every perturbation.

    Principal-component methods keep at most half as many components as there are controls, unless
    `components` is given.

    wells: table with `Metadata_*` and feature columns, or its Parquet file. control: column that says "negcon".
    Raises CamaeError when a needed column or the controls are missing.
    """
    table = wells if isinstance(wells, pd.DataFrame) else read_table(wells)[0]
    for column in (batch, perturbation, control):
        if column not in table:
            raise CamaeError(
                f"the table of wells has no column {column}; a map needs plate, perturbation and controls"
            )
    is_control = (table[control] == "negcon").to_numpy(bool)
    if not is_control.any():
        raise CamaeError(f"no well is a negative control: {control} says 'negcon' nowhere")
    named = ~is_control & (table[perturbation] != "").to_numpy(bool)
    features = features_of(table)
    most = int(is_control.sum()) // CONTROLS_PER_COMPONENT
    if method in _FITS_COMPONENTS and 1 <= most < features.shape[1]:
        options = {"components": most} | options
    z = align(features, method, batch=table[batch].to_numpy(str), control=is_control, **options)
    by = table[perturbation].to_numpy(str)[named]
    vectors = aggregate(z[named], by=by, method="spherical_mean", origin=z[is_control].mean(0))
    return ScreenMap(vectors, perturbation_names(by), options)
