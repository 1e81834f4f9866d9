"""Regions of interest (cells, organoids): a model-sized window around each, and the patches in it that they touch.

A window gives the context in which planes are standardized; only patches that touch the region become tokens, so
a small cell costs a fraction of a crop. A region larger than the window gets several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
import pandas as pd
import torch

from camae.embedding.windows import spread
from camae.errors import CamaeError

# Regions of one image: masks, a label image, or a table of centers.
RegionSource: TypeAlias = np.ndarray | torch.Tensor | pd.DataFrame | Mapping[str, Sequence[float]]
# Of one image, or one entry for each of several.
Regions: TypeAlias = RegionSource | Sequence[RegionSource]

CENTER_X, CENTER_Y = "Metadata_Cell_X", "Metadata_Cell_Y"
_WHAT = (
    "give boolean masks (H, W) or (R, H, W), an integer label image (H, W), or a table with the columns "
    f"{CENTER_X} and {CENTER_Y}"
)


@dataclass(frozen=True)
class Region:
    """Region of interest: a box of an image, rows top:bottom and columns left:right, and its pixels in the box.

    mask: (bottom - top, right - left) bool; None when all do. whole_window: all of the window is looked at.
    """

    top: int
    left: int
    bottom: int
    right: int
    mask: np.ndarray | None = None
    whole_window: bool = False

    def windows(self, height: int, width: int, crop: int) -> list[tuple[int, int]]:
        """Corners (y, x) of the model-sized windows: centered on the box and moved into the image, or covering it."""
        ys = _starts(self.top, self.bottom, height, crop)
        xs = _starts(self.left, self.right, width, crop)
        return [(y, x) for y in ys for x in xs]

    def patches(self, y: int, x: int, crop: int, patch: int) -> torch.Tensor | None:
        """Ascending indices of the window's patches that touch the region, (n,) int64; None when all do."""
        if self.whole_window:
            return None
        inside = np.zeros((crop, crop), bool)
        top, bottom = max(self.top, y), min(self.bottom, y + crop)
        left, right = max(self.left, x), min(self.right, x + crop)
        inside[top - y : bottom - y, left - x : right - x] = (
            True
            if self.mask is None
            else self.mask[top - self.top : bottom - self.top, left - self.left : right - self.left]
        )
        grid = crop // patch
        touched = inside.reshape(grid, patch, grid, patch).any(axis=(1, 3)).ravel()
        return None if touched.all() else torch.from_numpy(np.flatnonzero(touched))


def _starts(low: int, high: int, length: int, crop: int) -> list[int]:
    if high - low > crop:
        return [low + start for start in spread(high - low, crop)]
    return [min(max((low + high - crop) // 2, 0), length - crop)]


def read_regions(
    value: RegionSource, shape: tuple[int, int], where: str, size: int | None
) -> tuple[list[Region], bool]:
    """The regions of one image of `shape` (H, W), and whether it was a single mask (H, W).

    value: masks, labels or a table, as `camae.embed` takes them. size: side in px of a table's square regions.
    Raises CamaeError for any other value, another size, an empty mask, a center outside the image.
    """
    if isinstance(value, pd.DataFrame | Mapping):
        return _from_table(pd.DataFrame(value), shape, where, size), False
    if size is not None:
        raise CamaeError(
            "region_size is the side of regions given as a table of centers; masks have their own"
        )
    if not isinstance(value, np.ndarray | torch.Tensor):
        raise CamaeError(f"{where}: region is a {type(value).__name__}; {_WHAT}")
    array = value.cpu().numpy() if isinstance(value, torch.Tensor) else value
    if array.shape[-2:] != shape or array.ndim not in (2, 3):
        raise CamaeError(
            f"{where} is {shape[0]} x {shape[1]} px but its region has shape {tuple(array.shape)}; {_WHAT}"
        )
    if array.dtype == bool:
        masks = array[None] if array.ndim == 2 else array
        return [_from_mask(mask, f"{where}, region {i}") for i, mask in enumerate(masks)], array.ndim == 2
    if array.dtype.kind in "iu" and array.ndim == 2:
        return _from_labels(array, where), False
    raise CamaeError(f"{where}: region has {array.ndim} dimensions of {array.dtype}; {_WHAT}")


def _from_mask(mask_HW: np.ndarray, where: str) -> Region:
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    if not len(rows):
        raise CamaeError(f"{where} is empty: its mask has no true pixel")
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    return Region(int(top), int(left), int(bottom), int(right), mask_HW[top:bottom, left:right])


def _from_labels(labels_HW: np.ndarray, where: str) -> list[Region]:
    """One region per label above 0, by ascending label."""
    ys, xs = np.nonzero(labels_HW)
    values, index = np.unique(labels_HW[ys, xs], return_inverse=True)
    if len(values) and values[0] < 0:
        raise CamaeError(f"{where}: the label image has negative labels")
    boxes = np.empty((4, len(values)), np.int64)
    boxes[:2], boxes[2:] = np.iinfo(np.int64).max, -1
    for axis, at in enumerate((ys, xs)):
        np.minimum.at(boxes[axis], index, at)
        np.maximum.at(boxes[2 + axis], index, at + 1)
    regions = []
    for value, (top, left, bottom, right) in zip(values, boxes.T.tolist(), strict=True):
        regions.append(Region(top, left, bottom, right, labels_HW[top:bottom, left:right] == value))
    return regions


def _from_table(table: pd.DataFrame, shape: tuple[int, int], where: str, size: int | None) -> list[Region]:
    missing = [c for c in (CENTER_X, CENTER_Y) if c not in table]
    if missing:
        raise CamaeError(
            f"{where}: the table of regions has no column {missing[0]}; it has {', '.join(map(str, table.columns))}"
        )
    if size is not None and size < 1:
        raise CamaeError(f"region_size {size} is not a number of pixels above 0")
    try:
        centers = table[[CENTER_Y, CENTER_X]].to_numpy(np.float64)
    except (TypeError, ValueError) as error:
        raise CamaeError(f"{where}: {CENTER_X} and {CENTER_Y} must be numbers ({error})") from None
    height, width = shape
    regions = []
    for row, (y, x) in enumerate(centers):
        if not (0 <= y < height and 0 <= x < width):
            raise CamaeError(
                f"{where}: the center in row {row} of the table, ({CENTER_X} {x:g}, {CENTER_Y} {y:g}), is not in "
                f"the image of {height} x {width} px"
            )
        side = size or 1
        top = min(int(y + 0.5), height - 1) - side // 2
        left = min(int(x + 0.5), width - 1) - side // 2
        regions.append(
            Region(
                max(top, 0),
                max(left, 0),
                min(top + side, height),
                min(left + side, width),
                whole_window=size is None,
            )
        )
    return regions


def regions_per_image(region: Regions, n_images: int, single: bool) -> list[RegionSource]:
    """What belongs to each image: `region` itself for a single image, else one entry of it for each."""
    if single:
        return [cast(RegionSource, region)]
    if isinstance(region, pd.DataFrame | Mapping) or not isinstance(
        region, Sequence | np.ndarray | torch.Tensor
    ):
        raise CamaeError(f"there are {n_images} images: give a list of regions, one entry for each")
    entries: list[RegionSource] = list(region)
    if len(entries) != n_images:
        raise CamaeError(f"{len(entries)} entries in region for {n_images} images")
    return entries


def is_one_array(region: Regions | None) -> bool:
    """Whether regions came as an array, not as a table or a list."""
    return isinstance(region, np.ndarray | torch.Tensor)
