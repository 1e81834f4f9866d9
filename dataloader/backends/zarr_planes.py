"""Zarr planes: arrays of both formats by zarr-python; a chunk that holds several planes is decoded once for all."""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from camae.dataloader.backends import jpeg_xl
from camae.dataloader.backends.zarr_guard import (
    LARGEST_CHUNK,
    METADATA_FILES,
    check_array,
    check_chunks,
    check_metadata_size,
    chunk_files,
)
from camae.dataloader.optional_module import optional_module
from camae.errors import CamaeError

if TYPE_CHECKING:
    from camae.dataloader.backends.zarr_guard import ZarrArray

# Name of a site's array in JUMP-lite: <source>__<batch>__<plate>__<well>__<site>.
JUMP_LITE_KEY = re.compile(r"[^/]+?__[^/]+?__[^/]+?__[^/]+?__[^/]+")
JUMP_LITE_CHANNELS = ("AGP", "DNA", "ER", "Mito", "RNA")  # along an array's first axis
State = tuple[tuple[int, int], ...]  # size and time of files


class _Last(threading.local):
    """What a thread read last: planes of a site are read one after the other by one thread."""

    path: str = ""
    metadata: str = ""  # the file that describes the array
    array_state: State = ()
    array: ZarrArray | None = None
    place: tuple[object, ...] = ()  # of the block: path, first indices, state of its files
    block: npt.NDArray[np.generic] | None = None


_last = _Last()


def read_plane(path: str, index: tuple[int, ...], sizes_only: bool) -> np.ndarray:
    """Plane (H, W) of the array at `path`, at the indices of all axes but the last two; unread for `sizes_only`.

    An array named by a JUMP-lite site key must be one of JUMP-lite: uint16 (5, H, W).
    Raises CamaeError for another shape or dtype, a missing package, and what `zarr_guard` refuses; anything that zarr
    raises on damage.
    """
    array = _opened(path)
    if array.ndim < 2:
        raise CamaeError(f"{path}: has shape {array.shape}, a plane of (height, width) is needed")
    _check_jump_lite(path, array)
    if len(index) != array.ndim - 2:
        raise CamaeError(
            f"{path}: has shape {array.shape}: name the {array.ndim - 2} leading indices, as in {path}#"
            + ",".join("0" * (array.ndim - 2))
        )
    check_array(path, array, index)
    if sizes_only:
        return np.empty(array.shape[-2:], array.dtype)
    together = math.prod(array.chunks[:-2])
    if together == 1 or together * math.prod(array.shape[-2:]) * array.dtype.itemsize > LARGEST_CHUNK:
        check_chunks(path, array, index)
        plane = np.asarray(array[index])
    else:
        plane = _in_block(path, array, index)
    return plane.astype(array.dtype.newbyteorder("="), copy=False)


def _opened(path: str) -> ZarrArray:
    """The array at a path, opened once for all planes that a thread reads of it in a row."""
    zarr = optional_module("zarr", f"{path}: Zarr")
    if _last.array is not None and _last.path == path and _last.array_state == _state([_last.metadata]):
        return _last.array
    # One file to look at, because a mounted store answers slowly: the arrays of a format have the same one.
    metadata = next(
        (file for name in METADATA_FILES if os.path.isfile(file := os.path.join(path, name))), path
    )
    state = _state([metadata])
    check_metadata_size(path)
    if _names_jpeg_xl(path):
        jpeg_xl.register_codec(path)
    array = zarr.open(path, mode="r")
    if not isinstance(array, zarr.Array):
        raise CamaeError(f"{path}: is a Zarr group, name the array in it")
    _last.path, _last.metadata, _last.array_state, _last.array = path, metadata, state, array
    return array


def _names_jpeg_xl(path: str) -> bool:
    """Whether an array of format 2 is of JPEG XL chunks."""
    try:
        with open(os.path.join(path, ".zarray"), "rb") as file:
            return jpeg_xl.CODEC.encode() in file.read()
    except OSError:
        return False


def _check_jump_lite(path: str, array: ZarrArray) -> None:
    if not JUMP_LITE_KEY.fullmatch(os.path.basename(path)):
        return
    channels = len(JUMP_LITE_CHANNELS)
    if array.ndim != 3 or array.shape[0] != channels or array.dtype != np.uint16:
        raise CamaeError(
            f"{path}: is {array.dtype} {array.shape} where JUMP-lite has uint16 ({channels}, height, width) for "
            f"{', '.join(JUMP_LITE_CHANNELS)}: fetch this site again"
        )


def _in_block(path: str, array: ZarrArray, index: tuple[int, ...]) -> np.ndarray:
    """Plane of an array whose chunks hold several: all planes of its chunks are decoded, and kept for the next one."""
    chunks = array.chunks[:-2]
    first = tuple(i // c * c for i, c in zip(index, chunks, strict=True))
    files = chunk_files(path, array, index)
    if not files and JUMP_LITE_KEY.fullmatch(os.path.basename(path)):
        raise CamaeError(f"{path}: its metadata are here and its pixels are not: fetch this site again")
    place = (path, first, _state(files))
    if _last.block is None or _last.place != place:
        _last.block, _last.place = None, ()
        check_chunks(path, array, index)
        stops = (min(i + c, n) for i, c, n in zip(first, chunks, array.shape[:-2], strict=True))
        _last.block = np.asarray(array[tuple(slice(i, stop) for i, stop in zip(first, stops, strict=True))])
        _last.place = place
    return _last.block[tuple(i - f for i, f in zip(index, first, strict=True))].copy()


def _state(files: Sequence[str | os.PathLike[str]]) -> State:
    """Size and time of files; what is not there has none."""
    found = []
    for file in files:
        try:
            status = os.stat(file)
        except OSError:
            continue
        found.append((status.st_size, status.st_mtime_ns))
    return tuple(found)
