"""The demo screen's frozen numbers: what a cell looks like, how much biology varies, how bad the batches are.

Chosen so that the true factor values ("oracle") recover the planted relationships and so that simple measured
morphology recovers most of them; no trained network was ever consulted. Changing a value changes the screen:
raise `ScreenParameters.version` with it.
"""

from __future__ import annotations

from dataclasses import dataclass

CHANNELS = ("DNA", "ER", "RNA", "AGP", "Mito")
CHANNEL_NUMBER = {"Mito": 1, "AGP": 2, "RNA": 3, "ER": 4, "DNA": 5}

# Each factor is dimensionless: one unit is one standard deviation between the cells of an untreated well.
FACTORS = (
    "nuclear_area",
    "nuclear_elongation",
    "chromatin_granularity",
    "nucleolus_number",
    "er_spread",
    "er_texture_scale",
    "mito_fragmentation",
    "mito_clustering",
    "actin_order",
    "golgi_compactness",
    "cell_elongation",
    "cell_density",
)


@dataclass(frozen=True)
class ScreenParameters:
    """Everything the generator decides by a number. Lengths are pixels, intensities grey levels."""

    version: int = 1
    seed: int = 2024
    plates: int = 3
    sites: int = 2
    size: int = 256

    # Design: groups of mutually related perturbations, and perturbations on their own.
    groups: int = 10
    group_size: int = 4
    singletons: int = 8
    weak_singletons: int = 4

    # Biology, in factor units.
    group_strength: float = 2.6
    own_strength: float = 0.7
    weak_strength: float = 0.6
    well_sd: float = 0.22
    # Factors that brightness statistics alone would show: perturbations move them less, wells vary in them more.
    plain_factors: tuple[str, ...] = ("nuclear_area", "er_spread", "golgi_compactness", "cell_density")
    plain_effect: float = 0.5
    plain_well_sd: float = 0.5
    cell_sd: float = 1.0

    # Cells.
    cells_per_site: float = 20.0
    cell_radius: float = 36.0
    nucleus_radius: float = 13.5

    # Batch effects: standard deviations between plates, between wells of a plate, and of the outer wells.
    plate_gain_sd: float = 0.35
    well_gain_sd: float = 0.15
    background: float = 450.0
    plate_background_sd: float = 0.30
    illumination: float = 0.30
    plate_blur: tuple[float, float] = (0.7, 1.5)
    well_blur_sd: float = 0.16
    plate_factor_sd: float = 0.45
    edge_density: float = -1.4
    edge_gain: float = -0.15
    electrons_per_level: float = 0.12
    read_noise: float = 18.0
