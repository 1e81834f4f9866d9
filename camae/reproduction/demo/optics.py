"""Microscope and camera model: stain strength, focus, illumination, background and noise, by plate and well."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from camae.reproduction.demo.cells import MARGIN
from camae.reproduction.demo.screen_design import is_edge, stream
from camae.reproduction.demo.screen_parameters import CHANNELS, ScreenParameters
from camae.reproduction.demo.textures import blur

Array = npt.NDArray[np.floating]
_FULL_SIGNAL = {"DNA": 3200.0, "ER": 5200.0, "RNA": 4200.0, "AGP": 3000.0, "Mito": 2600.0}


def illumination(rng: np.random.Generator, size: int, depth: float) -> Array:
    """Illumination field: a smooth vignette with a random center and tilt, mean 1, shape (size, size)."""
    axis = np.linspace(-1, 1, size)
    y, x = axis[:, None], axis[None, :]
    center_y, center_x, tilt_y, tilt_x = rng.uniform(-0.5, 0.5, 4)
    field = (
        1 - depth * ((y - center_y) ** 2 + (x - center_x) ** 2) / 2 + 0.3 * depth * (tilt_y * y + tilt_x * x)
    )
    return (field / field.mean()).astype(np.float32)


def magnify(image_FF: Array, size: int) -> Array:
    """Bilinear resampling of an (F, F) image to (size, size) camera pixels, between pixel centers."""
    at = np.clip((np.arange(size) + 0.5) * len(image_FF) / size - 0.5, 0, len(image_FF) - 1)
    low = np.minimum(at.astype(int), len(image_FF) - 2)
    share = (at - low).astype(np.float32)
    rows = image_FF[low] * (1 - share)[:, None] + image_FF[low + 1] * share[:, None]
    return rows[:, low] * (1 - share) + rows[:, low + 1] * share


def acquire(
    clean_CLL: Array, parameters: ScreenParameters, plate: int, well: int, site: int
) -> npt.NDArray[np.uint16]:
    """Camera image of clean fluorescence: (5, L, L) float32 on the torus to (5, size, size) uint16 gray levels.

    Blur, gain, illumination, background, shot noise and read noise, drawn by plate, well and site.
    """
    plate_rng = stream(parameters.seed, 4, plate)
    well_rng = stream(parameters.seed, 5, plate, well)
    noise_rng = stream(parameters.seed, 6, plate, well, site)
    planes = []
    for name, clean_LL in zip(CHANNELS, clean_CLL):
        light = illumination(plate_rng, parameters.size, parameters.illumination)
        log_gain = parameters.plate_gain_sd * plate_rng.standard_normal()
        log_background = parameters.plate_background_sd * plate_rng.standard_normal()
        sigma = plate_rng.uniform(*parameters.plate_blur)
        log_gain += parameters.well_gain_sd * well_rng.standard_normal()
        log_background += 0.3 * parameters.well_gain_sd * well_rng.standard_normal()
        sigma *= np.exp(parameters.well_blur_sd * well_rng.standard_normal())
        log_gain += parameters.edge_gain * is_edge(well)
        specimen = np.maximum(blur(clean_LL, sigma / parameters.magnification), 0)
        sharp = magnify(specimen[MARGIN:-MARGIN, MARGIN:-MARGIN], parameters.size)
        level = light * (
            _FULL_SIGNAL[name] * np.exp(log_gain) * sharp + parameters.background * np.exp(log_background)
        )
        shot = np.sqrt(level / parameters.electrons_per_level)
        spread = np.sqrt(shot**2 + parameters.read_noise**2).astype(np.float32)
        noisy = level + spread * noise_rng.standard_normal(level.shape, dtype=np.float32)
        planes.append(np.clip(np.round(noisy), 0, 65535).astype(np.uint16))
    return np.stack(planes)
