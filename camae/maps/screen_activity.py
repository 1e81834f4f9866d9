"""Activity of the perturbations of a table of wells: aligned on half of the controls, compared with the other half."""

from __future__ import annotations

import numpy as np
import pandas as pd

from camae.maps.activity import activity, check_activity_options
from camae.maps.alignment import align, method_key, split_controls
from camae.maps.arrays import ArrayBackend, array_backend, rows
from camae.maps.distances import Distance
from camae.maps.perturbation_map import Components, check_components, component_options
from camae.maps.replicates import ReplicateUnit
from camae.maps.screens import Profiles, ScreenColumns, read_screen


def screen_activity(
    wells: Profiles,
    method: str = "tvn",
    *,
    perturbation: str = "Metadata_Perturbation",
    plate: str | None = "Metadata_Plate",
    control: str = "Metadata_control_type",
    negative: str = "negcon",
    unit: ReplicateUnit = "well",
    components: Components = "half_controls",
    backend: str | ArrayBackend = "numpy",
    distance: Distance = "cosine",
    threshold: float = 0.05,
    permutations: int = 1000,
    seed: int = 0,
    **options: object,
) -> pd.DataFrame:
    """Activity of the perturbations of a table of wells: `activity` with its arguments taken from columns.

    The alignment is fitted on half of the negative controls of each plate and the perturbations are compared with the
    other half, because controls that were fitted look alike whatever the perturbations do. With ``method="none"`` all
    controls are compared with.

    Parameters
    ----------
    wells, method, perturbation, plate, control, negative, unit, components, backend, **options
        As in `map_screen`.
    distance, threshold, permutations, seed
        As in `activity`; seed also of the half of the controls.

    Returns
    -------
    DataFrame
        That of `activity`.

    Raises
    ------
    CamaeError
        As `map_screen` and `activity`.
    """
    screen = read_screen(wells, ScreenColumns(perturbation, plate, control, negative), unit)
    x = array_backend(backend).asarray(screen.x)
    fitted = held = screen.control
    check_activity_options(threshold, permutations, seed)
    check_components(method, components)
    if method_key(method) != "none":
        fitted, held = split_controls(screen.control, screen.plate, seed=seed)
        options = component_options(method, x.shape[1], fitted, components) | options
    x = align(x, method, screen.plate, fitted, perturbation=screen.perturbation, **options)
    used = np.flatnonzero(held | (~screen.control & (screen.perturbation != "")))
    return activity(
        rows(x, used),
        screen.perturbation[used],
        held[used],
        None if screen.plate is None else screen.plate[used],
        permutations=permutations,
        threshold=threshold,
        seed=seed,
        distance=distance,
    )
