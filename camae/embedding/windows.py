"""Windows: rectangles of an image that the encoder takes as one sample each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from camae.dataloader.plane_batch import ValueRange
from camae.embedding.validate import constant_planes, constant_sentence
from camae.errors import CamaeError

Corner = tuple[int, int]

# Tiles of an image: more than these, and than so many times those without overlap, are a mistyped overlap.
_MOST_TILES, _MOST_TIMES = 1_000, 100


@dataclass(frozen=True)
class Window:
    """Window of an image, encoded as one sample.

    image: index of the image. vector_index: output vector that it is part of. y, x: top left corner in pixels.
    patches: (n,) int64 ascending, the visible patches of every plane; None when all are.
    """

    image: int
    vector_index: int
    y: int
    x: int
    height: int
    width: int
    patches: torch.Tensor | None = None

    def cut(self, image_CHW: torch.Tensor) -> torch.Tensor:
        """Its pixels (C, height, width), a view."""
        return image_CHW[:, self.y : self.y + self.height, self.x : self.x + self.width]

    def n_visible(self, patch: int) -> int:
        """Visible patches of each plane."""
        return (self.height // patch) * (self.width // patch) if self.patches is None else len(self.patches)


def tile_windows(whole: Window, crop: int, patch: int, tiles: str, overlap: float = 0.0) -> list[Window]:
    """Windows that stand for the image `whole`: tiles of `crop` px, or the image itself.

    tiles, overlap: as in `EmbedConfig`. An image of the model's crop is taken as it is.
    Raises CamaeError for an image smaller than a tile, and for one taken whole whose sides patches do not divide.
    """
    if (whole.height, whole.width) == (crop, crop):
        return [whole]
    if tiles == "interpolate":
        if whole.height % patch or whole.width % patch:
            raise CamaeError(
                f"planes of {whole.height} x {whole.width} px are not a multiple of the patch, {patch} px; crop or pad "
                f"them, for example to {_multiple(whole.height, patch)} x {_multiple(whole.width, patch)} px"
            )
        return [whole]
    corners = tile_corners(whole.height, whole.width, crop, tiles, overlap)
    return [replace(whole, y=y, x=x, height=crop, width=crop) for y, x in corners]


def _multiple(length: int, patch: int) -> int:
    """Largest multiple of the patch in a length, at least one."""
    return max(1, length // patch) * patch


def tile_corners(height: int, width: int, size: int, tiles: str, overlap: float = 0.0) -> list[Corner]:
    """Top left corners (y, x) of tiles of `size` px.

    "grid": non-overlapping from the top left; a rest smaller than a tile is left out (8 x 8 tiles of 256 on a
    2048-px field, as the paper embedded RxRx3). "cover": evenly spread, every pixel in at least one tile,
    neighbors sharing at least `overlap` of a tile. "center": the one in the middle.
    Raises CamaeError for an image smaller than a tile.
    """
    if height < size or width < size:
        raise CamaeError(
            f"the image is {height} x {width} px, smaller than the model's crop of {size} x {size} px; pad it, "
            "or give tiles='interpolate' where the patch divides its sides"
        )
    if tiles == "center":
        return [((height - size) // 2, (width - size) // 2)]
    if tiles == "grid":
        ys, xs = (list(range(0, n - size + 1, size)) for n in (height, width))
    else:
        _check_overlap(height, width, size, overlap)
        ys, xs = (spread(n, size, overlap) for n in (height, width))
    return [(y, x) for y in ys for x in xs]


def _check_overlap(height: int, width: int, size: int, overlap: float) -> None:
    """Raise CamaeError for an overlap that would take an image in a great many tiles."""

    def tiles(share: float) -> int:
        return _count(height, size, share) * _count(width, size, share)

    count = tiles(overlap)
    if count > _MOST_TILES and count > _MOST_TIMES * tiles(0.0):
        raise CamaeError(
            f"an overlap of {overlap:g} makes {count:,} tiles of {size} x {size} px of an image of {height} x {width} "
            f"px, {count // tiles(0.0):,} times as many as without; give a smaller overlap, such as 0.5"
        )


def _count(length: int, size: int, overlap: float) -> int:
    """Windows of `size` over `length` px."""
    stride = max(1, int(size * (1 - overlap)))
    return -(-(length - size) // stride) + 1


def spread(length: int, size: int, overlap: float = 0.0) -> list[int]:
    """Starts of windows of `size` spread evenly over `length`, the first at 0, the last at the end."""
    count = _count(length, size, overlap)
    if count == 1:
        return [0]
    return [round(i * (length - size) / (count - 1)) for i in range(count)]


def constant_windows(
    image_CHW: torch.Tensor,
    windows: Sequence[Window],
    names: Sequence[str],
    value_range: ValueRange | None,
    where: str,
    extremes_2C: np.ndarray | None = None,
) -> list[str | None]:
    """Why each window of an image is left out: a sentence on its first constant plane, None where all have signal.

    where: of the image, for the error. extremes_2C: what `extremes` says of the image, where it is known already.
    Raises CamaeError when no window is left.
    """
    reasons: list[str | None] = []
    for window in windows:
        planes = window.cut(image_CHW)
        known = extremes_2C if planes.shape == image_CHW.shape else None
        constant = constant_planes(planes, value_range, known)
        reasons.append(constant_sentence(planes, constant, names) if constant.any() else None)
    if reasons and all(reasons):
        whole = windows[0].cut(image_CHW).shape == image_CHW.shape
        place = "" if whole else " in its window" if len(windows) == 1 else " in every tile"
        raise CamaeError(f"{where}, {reasons[0]}{place}; leave it out")
    return reasons
