"""Where the model-sized tiles of a larger image lie."""

from __future__ import annotations

from camae.errors import CamaeError

Corner = tuple[int, int]


def tile_corners(height: int, width: int, size: int, tiles: str, overlap: float = 0.0) -> list[Corner]:
    """Top left corners (y, x) of tiles of `size` px.

    "grid": non-overlapping from the top left; a rest smaller than a tile is left out (8 x 8 tiles of 256 on a
    2048-px field, as the paper embedded RxRx3). "cover": evenly spread, every pixel in at least one tile,
    neighbors sharing at least `overlap` of a tile. "center": the one in the middle.
    Raises CamaeError for an image smaller than a tile.
    """
    check_overlap(overlap)
    if height < size or width < size:
        raise CamaeError(
            f"the image is {height} x {width} px, smaller than the model's crop of {size} x {size} px"
        )
    if tiles == "center":
        return [((height - size) // 2, (width - size) // 2)]
    if tiles == "grid":
        ys, xs = (list(range(0, n - size + 1, size)) for n in (height, width))
    elif tiles == "cover":
        ys, xs = (spread(n, size, overlap) for n in (height, width))
    else:
        raise CamaeError(f"tiles {tiles!r} is not 'grid', 'cover' or 'center'")
    return [(y, x) for y in ys for x in xs]


def check_overlap(overlap: float) -> None:
    """Raises CamaeError unless `overlap` is a share of a tile in [0, 1)."""
    if not 0 <= overlap < 1:
        raise CamaeError(f"overlap {overlap} is not a share of a tile in [0, 1)")


def spread(length: int, size: int, overlap: float = 0.0) -> list[int]:
    """Starts of windows of `size` spread evenly over `length`, the first at 0, the last at the end."""
    stride = max(1, int(size * (1 - overlap)))
    count = -(-(length - size) // stride) + 1
    if count == 1:
        return [0]
    return [round(i * (length - size) / (count - 1)) for i in range(count)]
