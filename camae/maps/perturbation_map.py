"""Perturbation map: from embeddings of wells to one vector for each perturbation.

Every recall, curve and report starts here: align the wells on the negative controls, then aggregate replicates.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from camae.embedding_table import features_of, read_table
from camae.errors import CamaeError
from camae.maps.aggregation import aggregate, control_mean, perturbation_names
from camae.maps.alignment import align
from camae.maps.arrays import Array, Labels, Mask, rows
from camae.maps.inputs import embeddings, labels, mask

# Negative controls per component kept by "half_controls": a covariance from about as many controls as features
# whitens their noise, not the batch effect.
CONTROLS_PER_COMPONENT = 2
FITS_COMPONENTS = ("pca", "pca_standardize", "tvn", "tvn_ando")

Components: TypeAlias = Literal["half_controls"] | int | None


@dataclass(frozen=True)
class ScreenMap:
    """Perturbation map of a screen.

    Attributes
    ----------
    vectors : (n, k) array
        One row for each perturbation, of unit length, origin at the negative controls.
    names : (n,) array of text
        The perturbations, sorted.
    options : dict
        Options that the alignment was given, among them the number of components it was limited to.
    """

    vectors: Array
    names: npt.NDArray[np.str_]
    options: dict[str, object]


def map_profiles(
    x: Array,
    perturbation: Labels,
    batch: Labels | None,
    control: Mask,
    method: str = "tvn",
    components: Components = "half_controls",
    **options: object,
) -> ScreenMap:
    """Perturbation map of a screen's profiles: alignment on the negative controls, then the spherical mean.

    Parameters
    ----------
    x : (n, d) array
        Profiles (embeddings of wells), NumPy or CuPy, floating point.
    perturbation : n labels
        Perturbation of each row; "" for none.
    batch : n labels or None
        Plate or experiment of each row, the unit of the alignment; None to align all rows together.
    control : n booleans
        True for negative controls.
    method : str
        Alignment, one of `camae.maps.METHODS`.
    components : "half_controls", int or None
        Principal components that a method of `FITS_COMPONENTS` keeps. "half_controls" keeps at most half as many as
        there are controls, because a covariance of about as many controls as components describes their noise.
        None keeps all, a number keeps that many.
    **options
        Further options of the alignment, for example ``eps=0.5``.

    Returns
    -------
    ScreenMap
        One vector for each perturbation; negative controls and rows without a perturbation are left out.

    Raises
    ------
    CamaeError
        When no row is a control, or for unusable input.
    """
    x = embeddings(x)
    control_N = mask(control, x.shape[0], "control")
    most = int(control_N.sum()) // CONTROLS_PER_COMPONENT
    if components != "half_controls":
        if components is not None:
            options = {"components": components} | options
    elif method in FITS_COMPONENTS and 1 <= most < x.shape[1]:
        options = {"components": most} | options
    z = align(x, method, batch=batch, control=control_N, **options)
    vectors, names = perturbation_vectors(z, perturbation, control_N)
    return ScreenMap(vectors, names, options)


def perturbation_vectors(z: Array, perturbation: Labels, control: Mask) -> tuple[Array, npt.NDArray[np.str_]]:
    """Vectors and names of the perturbations of aligned profiles: spherical means, origin at the controls' mean.

    Negative controls and rows whose perturbation is "" are left out. Raises CamaeError when no row is a control, or
    none is left.
    """
    name_N, control_N = labels(perturbation, z.shape[0], "perturbation"), mask(control, z.shape[0], "control")
    origin = control_mean(z, control_N)
    chosen = np.flatnonzero(~control_N & (name_N != ""))
    if len(chosen) == 0:
        raise CamaeError("no row has a perturbation; all are negative controls or have an empty name")
    by = name_N[chosen]
    return aggregate(rows(z, chosen), by, "spherical_mean", origin=origin), perturbation_names(by)


def map_screen(
    wells: pd.DataFrame | str | Path,
    method: str = "tvn",
    *,
    batch: str = "Metadata_Plate",
    perturbation: str = "Metadata_Perturbation",
    control: str = "Metadata_control_type",
    components: Components = "half_controls",
    **options: object,
) -> ScreenMap:
    """Perturbation map of a table of wells: `map_profiles` with its arguments taken from columns.

    Parameters
    ----------
    wells : DataFrame or path
        Table with `Metadata_*` and feature columns, or its Parquet file (wells.parquet of ``camae embed``).
    method : str
        Alignment, one of `camae.maps.METHODS`.
    batch, perturbation, control : str
        Columns of the plate, the perturbation, and the control type, which says "negcon" for negative controls.
    components, **options
        As in `map_profiles`.

    Returns
    -------
    ScreenMap
        One vector for each perturbation, NumPy.

    Raises
    ------
    CamaeError
        When a needed column or the controls are missing; MissingFileError when there is no such file.
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
    name_N, batch_N = table[perturbation].to_numpy(str), table[batch].to_numpy(str)
    return map_profiles(features_of(table), name_N, batch_N, is_control, method, components, **options)
