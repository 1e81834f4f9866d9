"""Parameters of the demo screen: cell appearance, effect sizes, batch effects.

The values are frozen. They were chosen so that the true factor values recover the planted relationships and simple
measured morphology recovers most of them. Version 1 hid the effects of perturbations from any encoder that
sees patches of 16 pixels: it damped the four factors that change the layout of a cell and left most of the signal in
textures of two or three pixels. Version 2 treats all factors alike, makes them stronger, and images at a higher
magnification. Its strength and magnification were settled while looking at the recall of trained encoders on
intermediate versions, so the demo shows that the parts work together; it is no independent measure of how well a
model recalls biology.
Changing a value changes the screen: raise `ScreenParameters.version` with it.
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
    """Parameters of the generator. Lengths are pixels, intensities gray levels."""

    version: int = 2
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
    group_strength: float = 5.0
    own_strength: float = 1.2
    weak_strength: float = 1.0
    well_sd: float = 0.22
    cell_sd: float = 1.0

    # Camera pixels per specimen pixel. Specimen lengths below are those of a 20x objective; real screens image at
    # this or a higher one, and an organelle must be larger than a few camera pixels to be seen by patches of 16.
    magnification: float = 1.6

    # Cells, in specimen pixels; counts for a field of 256 of them.
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

    @property
    def field(self) -> int:
        """Edge of a site in specimen pixels."""
        return round(self.size / self.magnification)
