"""The frozen field generator of the reader and loader benches: never change it, numbers depend on it.

A field is what a 16-bit camera sees of stained cells: offset 100, background, round cells with texture, vignetting,
Poisson and read noise. Deflate shrinks it to about two thirds, as it does real Cell Painting planes.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import tifffile

SIZE = 2048
CHANNELS = ("DNA", "ER", "RNA", "AGP", "Mito", "Brightfield")
LAYOUTS: dict[str, dict] = {
    "none, strips of 8": {"rowsperstrip": 8},
    "LZW, strips of 8": {"compression": "lzw", "rowsperstrip": 8},
    "LZW, tiles 256": {"compression": "lzw", "tile": (256, 256)},
    "deflate, strips of 8": {"compression": "zlib", "rowsperstrip": 8},
    "deflate, whole-image strip": {"compression": "zlib", "rowsperstrip": SIZE},
    "deflate, tiles 256": {"compression": "zlib", "tile": (256, 256)},
    "zstd, strips of 8": {"compression": "zstd", "rowsperstrip": 8},
    "zstd, tiles 256": {"compression": "zstd", "tile": (256, 256)},
}


@lru_cache(maxsize=32)
def field(seed: int, channel: int, size: int = SIZE) -> np.ndarray:
    """One plane (size, size) uint16, the same for the same arguments. Not to be changed in place."""
    rng = np.random.default_rng((20260101, seed, channel))
    photons = np.full((size, size), 60.0 + 15.0 * channel, np.float32)
    for _ in range(max(1, size * size // 18_000)):
        _add_cell(photons, rng)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    photons *= 1.0 - 0.25 * (axis[:, None] ** 2 + axis[None, :] ** 2) / 2
    camera = 100 + 2.0 * rng.poisson(photons) + rng.normal(0, 3, photons.shape)
    return np.clip(np.rint(camera), 0, 65535).astype(np.uint16)


def _add_cell(photons: np.ndarray, rng: np.random.Generator) -> None:
    size = photons.shape[0]
    y, x = rng.uniform(0, size, 2)
    radius, brightness, frequency = rng.uniform(12, 40), rng.gamma(2.0, 250.0), rng.uniform(0.1, 0.6)
    y0, x0 = int(max(0, y - 2 * radius)), int(max(0, x - 2 * radius))
    rows = np.arange(y0, min(size, int(y + 2 * radius) + 1), dtype=np.float32)[:, None] - np.float32(y)
    columns = np.arange(x0, min(size, int(x + 2 * radius) + 1), dtype=np.float32)[None, :] - np.float32(x)
    disc = np.exp(-(((rows**2 + columns**2) / radius**2) ** 2))
    texture = 1 + 0.3 * np.sin(frequency * rows) * np.sin(frequency * columns)
    photons[y0 : y0 + len(rows), x0 : x0 + columns.shape[1]] += brightness * disc * texture


def write_fields(folder: Path, layout: str, n_fields: int, size: int = SIZE) -> list[list[str]]:
    """Write n_fields x 6 single-plane files in one layout; returns the paths per field. Existing files are kept."""
    options = dict(LAYOUTS[layout])
    if "rowsperstrip" in options:
        options["rowsperstrip"] = min(options["rowsperstrip"], size)
    place = folder / f"{layout.replace(', ', '_').replace(' ', '_')}_{size}"
    place.mkdir(parents=True, exist_ok=True)
    paths = []
    for f in range(n_fields):
        paths.append([str(place / f"f{f}_{name}.tif") for name in CHANNELS])
        for channel, path in enumerate(paths[-1]):
            if not Path(path).exists():
                tifffile.imwrite(path, field(f, channel, size), **options)
    return paths
