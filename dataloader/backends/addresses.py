"""Plane addresses (`file.tif#page`) and the checks that all image back-ends share."""

from __future__ import annotations

import os
import re

from camae.errors import CamaeError, MissingFileError

_ADDRESS = re.compile(r"^(?P<file>.+?)(?:#(?P<index>\d+(?:,\d+)*))?$", re.DOTALL)


def split_address(address: str) -> tuple[str, tuple[int, ...]]:
    """File and index of a plane's address.

    `file.tif#2` -> ("file.tif", (2,)); `images.zarr#0,3` -> ("images.zarr", (0, 3)); no `#` -> ().
    Raises CamaeError for an empty address.
    """
    if address and "#" not in address:
        return address, ()
    match = _ADDRESS.match(address)
    if match is None:
        raise CamaeError("an empty path was given where an image is meant")
    index = match["index"]
    return match["file"], tuple(int(i) for i in index.split(",")) if index else ()


def is_tiff(address: str) -> bool:
    """Test for the file name suffix .tif or .tiff."""
    return split_address(address)[0].lower().endswith((".tif", ".tiff"))


def refuse_remote(path: str) -> None:
    """Check that an address is local. Raises CamaeError with the command that fetches it."""
    if path.startswith("s3://"):
        raise CamaeError(
            f"{path}: is on S3 and camae reads local files only: fetch it with "
            f"`aws s3 cp --no-sign-request {path} .` and point the manifest at the copy"
        )
    if "://" in path:
        raise CamaeError(f"{path}: is a network address and camae reads local files only: download it first")


def require(path: str) -> os.stat_result:
    """Status of a local file. Raises MissingFileError when it does not exist, CamaeError without permission."""
    try:
        return os.stat(path)
    except PermissionError:
        raise CamaeError(f"{path}: no permission to read it") from None
    except OSError:
        raise MissingFileError(f"{path}: no such file") from None


def check_window(path: str, y: int, x: int, size: int | tuple[int, int], height: int, width: int) -> None:
    """Check that a window, square or (h, w), lies in an image, all in pixels. Raises CamaeError naming the file."""
    h, w = (size, size) if isinstance(size, int) else size
    if y < 0 or x < 0 or min(h, w) < 1 or y + h > height or x + w > width:
        shape = f"{h}" if h == w else f"{h}x{w}"
        raise CamaeError(
            f"{path}: a crop of {shape} pixels at ({y}, {x}) does not fit into the image of {height}x{width} pixels"
        )
