"""Plane addresses (`file.tif#page`, projections `file.tif#max:0+2+4`) and checks that all image back-ends share."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from camae.errors import CamaeError, MissingFileError

PROJECTIONS = ("max", "mean")
_INDEX = r"\d+(?:,\d+)*"
_PLAIN = re.compile(_INDEX)
_ADDRESS = re.compile(
    rf"^(?P<file>.+?)(?:#(?P<index>{_INDEX})|#(?P<how>{'|'.join(PROJECTIONS)}):(?P<planes>{_INDEX}(?:\+{_INDEX})*))?$",
    re.DOTALL,
)


class Projection(NamedTuple):
    """Projection of several planes to one: how (one of PROJECTIONS), and the planes' addresses."""

    how: str
    planes: list[str]


def split_address(address: str) -> tuple[str, tuple[int, ...]]:
    """File and index of a plane's address.

    `file.tif#2` -> ("file.tif", (2,)); `images.zarr#0,3` -> ("images.zarr", (0, 3)); no `#` -> (). Of a projection,
    see `projection_of`, the numbers of all its planes.
    Raises CamaeError for an empty address.
    """
    if address and "#" not in address:
        return address, ()
    file, _, last = address.rpartition("#")
    if file and _PLAIN.fullmatch(last):  # quick: asked for every plane of a screen
        return file, tuple(map(int, last.split(",")))
    match = _ADDRESS.match(address)
    if match is None:
        raise CamaeError("an empty path was given where an image is meant")
    index = match["index"] or match["planes"]
    return match["file"], tuple(int(i) for i in re.split(r"[,+]", index)) if index else ()


def projection_of(address: str) -> Projection | None:
    """Projection that an address names, as in `file.tif#max:0+2+4` (pages) or `images.zarr#mean:0,0+0,1` (indices of a
    Zarr array); None for an address of one plane.
    """
    if "#m" not in address:  # quick: asked for every plane that is read
        return None
    match = _ADDRESS.match(address)
    if match is None or not match["how"]:
        return None
    return Projection(match["how"], [f"{match['file']}#{index}" for index in match["planes"].split("+")])


def plane_address(file: str, indices: Sequence[str], how: str = "") -> str:
    """Address of one plane of a file, or of a projection of several.

    indices: of the planes, "3" for a page, "0,3" for leading indices, "" for an array of one plane.
    how:     one of PROJECTIONS, "" for one plane.
    """
    index = f"{how}:{'+'.join(indices)}" if how else indices[0]
    return f"{file}#{index}" if index else file


def is_tiff(address: str) -> bool:
    """Test for the file name suffix .tif or .tiff."""
    return split_address(address)[0].lower().endswith((".tif", ".tiff"))


def refuse_remote(path: str) -> None:
    """Check that an address is local. Raises CamaeError with the command that fetches it."""
    if path.startswith("s3://") and ".zarr/" in path:
        array = split_address(path)[0]
        raise CamaeError(
            f"{path}: is on S3 and camae reads local files only: fetch the array with "
            f"`aws s3 cp --no-sign-request --recursive {array}/ {array.rpartition('/')[2]}/`, or all of them with the "
            "commands of `camae data plan`"
        )
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
