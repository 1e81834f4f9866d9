"""Pixel sizes of planes in micrometers, from OME, ImageJ and TIFF resolution tags and from OME-Zarr."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from camae.dataloader.backends.addresses import is_tiff, split_address
from camae.dataloader.manifest import Manifest

_MICROMETERS = {
    "nm": 1e-3,
    "nanometer": 1e-3,
    "um": 1.0,
    "µm": 1.0,
    "μm": 1.0,
    "\\u00b5m": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "mm": 1e3,
    "millimeter": 1e3,
    "cm": 1e4,
    "inch": 25_400.0,
}
# Editors write 72 or 96 dots per inch where they know nothing; no microscope's pixel is as large.
_LARGEST = 100.0


def pixel_size(address: str) -> float | None:
    """Edge of a plane's pixels in micrometers, None where the file does not say or cannot be read."""
    path, _ = split_address(address)
    try:
        size = _of_tiff(path) if is_tiff(address) else _of_ome_zarr(Path(path))
    except Exception:  # metadata of a damaged file raises anything; what it says is then not known
        return None
    return size if size is not None and 0 < size < _LARGEST else None


def pixel_sizes(manifest: Manifest, rows: Sequence[int] | None = None) -> npt.NDArray[np.float64]:
    """Pixel size of the first plane of every row (or of `rows`) in micrometers, (sites,), NaN where it is not known."""
    chosen = range(len(manifest)) if rows is None else rows
    sizes = [pixel_size(manifest.path(row, manifest.site_channels(row)[0])) for row in chosen]
    return np.array([np.nan if size is None else size for size in sizes], np.float64)


def _of_tiff(path: str) -> float | None:
    import tifffile

    if not os.path.isfile(path):
        return None
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        description = page.description[: 1 << 20]
        resolution = page.tags.valueof(282)
        unit = {2: "inch", 3: "cm"}.get(int(page.tags.valueof(296) or 2))
    if (ome := re.search(r'PhysicalSizeX="([0-9.eE+-]+)"', description)) is not None:
        named = re.search(r'PhysicalSizeXUnit="([^"]+)"', description)
        return float(ome[1]) * _MICROMETERS.get(named[1] if named else "um", float("nan"))
    if not resolution or not resolution[0]:
        return None
    edge = float(resolution[1]) / float(resolution[0])
    if description.startswith("ImageJ="):
        imagej = re.search(r"^unit=(.+)$", description, re.MULTILINE)
        return edge * _MICROMETERS.get(imagej[1].strip().lower(), float("nan")) if imagej else None
    return edge * _MICROMETERS[unit] if unit else None


def _of_ome_zarr(array: Path) -> float | None:
    """Scale of the x axis in the multiscales metadata of the group above an array."""
    for name in (".zattrs", "zarr.json"):
        file = array.parent / name
        if not file.is_file() or file.stat().st_size > 1 << 20:
            continue
        about = json.loads(file.read_text(encoding="utf-8"))
        about = about.get("attributes", about)
        scale = about.get("ome", about)["multiscales"][0]
        dataset = next(d for d in scale["datasets"] if d["path"] == array.name)
        factor = next(t["scale"] for t in dataset["coordinateTransformations"] if t["type"] == "scale")[-1]
        unit = scale["axes"][-1].get("unit")
        return float(factor) * _MICROMETERS[unit] if unit in _MICROMETERS else None
    return None
