"""Regions of interest (cells, organoids): a model-sized window around each, and the patches in it that they touch.

A window gives the context in which planes are standardized; only patches that touch the region become tokens, so
a small cell costs a fraction of a crop. A region larger than the window gets several.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
import pandas as pd
import torch

from camae.embedding.pieces import count_pieces
from camae.embedding.windows import spread
from camae.errors import CamaeError
from camae.model.image_arrays import refuse_masked

# Regions of one image: masks, a label image, or a table of centers.
RegionSource: TypeAlias = np.ndarray | torch.Tensor | pd.DataFrame | Mapping[str, Sequence[float]]
# Of one image, or one entry for each of several.
Regions: TypeAlias = RegionSource | Sequence[RegionSource]

# Names of a table's x; y has its last letter changed. Cell Painting's profiles, CellProfiler's objects and exports.
_CENTER = re.compile(r"Metadata_Cell_X|(\w+_)?Location_Center_X")
_WHAT = (
    "give boolean masks (H, W) or (R, H, W), an integer label image (H, W), or a table with the columns "
    "Metadata_Cell_X and Metadata_Cell_Y (or Location_Center_X and Location_Center_Y, Nuclei_Location_Center_X ...)"
)
_TO_CALLER = 6  # frames from a warning to the caller of `camae.embed`


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

    def pixels(self, image_CHW: torch.Tensor) -> torch.Tensor:
        """The region's pixels of every plane, (C, n)."""
        box_CHW = image_CHW[:, self.top : self.bottom, self.left : self.right]
        if self.mask is None:
            return box_CHW.flatten(1)
        # Flat positions: torch picks by an index in every dtype, by a mask not in uint16.
        index = torch.from_numpy(np.flatnonzero(self.mask)).to(image_CHW.device)
        return box_CHW.flatten(1)[:, index]

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
    refuse_masked(value, f"the region of {where}")
    array = value.cpu().numpy() if isinstance(value, torch.Tensor) else value
    if array.shape[-2:] != shape or array.ndim not in (2, 3):
        raise CamaeError(
            f"{where} is {shape[0]} x {shape[1]} px but its region has shape {tuple(array.shape)}; {_WHAT}"
        )
    if array.dtype == bool:
        masks = array[None] if array.ndim == 2 else array
        if array.ndim == 2:
            _warn_of_pieces(array, f"{where}: its mask is")
        return [_from_mask(mask, f"{where}, region {i}") for i, mask in enumerate(masks)], array.ndim == 2
    if array.dtype.kind in "iu" and array.ndim == 2:
        regions = _from_labels(array, where)
        if len(regions) == 1 and regions[0].mask is not None:
            _warn_of_pieces(regions[0].mask, f"{where}: its label image has one label, {array.max()}, and is")
        return regions, False
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


def _warn_of_pieces(mask_HW: np.ndarray, what: str) -> None:
    """Warn of one region that looks like a mask of all cells."""
    if (pieces := count_pieces(mask_HW)) > 1:
        warnings.warn(
            f"{what} one region with {pieces:,} connected components, which get one vector together; for a vector of "
            "each give a label image with another number for each cell, such as scipy.ndimage.label(mask)[0]",
            stacklevel=_TO_CALLER,
        )


def _from_table(table: pd.DataFrame, shape: tuple[int, int], where: str, size: int | None) -> list[Region]:
    x_name, y_name = _center_columns(table, where)
    if size is not None and not (isinstance(size, int | np.integer) and size >= 1):
        raise CamaeError(f"region_size {size} is not a whole number of pixels above 0")
    try:
        centers = table[[y_name, x_name]].to_numpy(np.float64)
    except (TypeError, ValueError) as error:
        raise CamaeError(f"{where}: {x_name} and {y_name} must be numbers ({error})") from None
    height, width = shape
    regions = []
    for row, (y, x) in enumerate(centers):
        if not (0 <= y < height and 0 <= x < width):
            raise CamaeError(
                f"{where}: the center in row {row} of the table, ({x_name} {x:g}, {y_name} {y:g}), is not in "
                f"the image of {height} x {width} px"
            )
        regions.append(_square(int(y + 0.5), int(x + 0.5), shape, size))
    return regions


def _center_columns(table: pd.DataFrame, where: str) -> tuple[str, str]:
    """The columns of x and y. Raises CamaeError where there are none, or several that differ."""
    pairs = [(str(c), f"{str(c)[:-1]}Y") for c in table.columns if _CENTER.fullmatch(str(c))]
    if not pairs:
        raise CamaeError(
            f"{where}: the table of regions has no column Metadata_Cell_X or Location_Center_X; it has "
            f"{', '.join(map(str, table.columns))}"
        )
    for x_name, y_name in pairs:
        if y_name not in table:
            raise CamaeError(f"{where}: the table of regions has {x_name} but no column {y_name}")
    (x_name, y_name), *others = pairs
    for other_x, other_y in others:
        if not (table[other_x].equals(table[x_name]) and table[other_y].equals(table[y_name])):
            raise CamaeError(
                f"{where}: the table of regions has two sets of centers, {x_name} and {other_x}; give the table with "
                "one of them"
            )
    return x_name, y_name


def _square(y: int, x: int, shape: tuple[int, int], size: int | None) -> Region:
    """A square of `size` px around a pixel, cut at the image's edges; without a size the whole window counts."""
    height, width = shape
    side = size or 1
    top, left = min(y, height - 1) - side // 2, min(x, width - 1) - side // 2
    bottom, right = min(top + side, height), min(left + side, width)
    return Region(max(top, 0), max(left, 0), bottom, right, whole_window=size is None)


def regions_per_image(region: Regions, n_images: int, single: bool) -> list[RegionSource]:
    """Regions of each image: `region` itself for a single image, else one entry of it for each."""
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
