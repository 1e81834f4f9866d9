"""Image decoders of Python packages, whole planes: PNG, JPEG 2000, Zarr, Parquet, vendor formats, TIFF by tifffile."""

from __future__ import annotations

import io
import os
import struct
from functools import lru_cache
from typing import TYPE_CHECKING, BinaryIO, Protocol

import numpy as np

from camae.dataloader.backends import native, vendor, zarr_planes
from camae.dataloader.backends.addresses import projection_of, refuse_remote, require, split_address
from camae.dataloader.backends.projection import project
from camae.dataloader.optional_module import optional_module
from camae.errors import CamaeError
from camae.files import local_path

if TYPE_CHECKING:
    import pyarrow

_JPEG2000_RATIO = 20_000  # pixels per byte: a constant plane needs more than that
ACCEPTED = (np.uint8, np.uint16, np.float32)


class Decoder(Protocol):
    """Decoder of one file format.

    path, index: the address, split at `#`. sizes_only: the pixels may be left unread.
    Returns (H, W) or (pages, H, W). May raise anything on a damaged file.
    """

    def __call__(self, path: str, index: tuple[int, ...], sizes_only: bool) -> np.ndarray: ...


def decode(address: str, sizes_only: bool = False) -> np.ndarray:
    """Pixels of an address by a Python package: uint8, uint16 or float32.

    sizes_only: the pixels may be left unread, only shape and dtype count.
    Returns (H, W), or (pages, H, W) for a file of several planes without `#`.
    Raises MissingFileError or CamaeError with one sentence naming the file.
    """
    refuse_remote(address)
    if (projection := projection_of(address)) is not None:
        return project(address, projection, (decode(plane, sizes_only) for plane in projection.planes))
    path, index = split_address(address)
    require(path)
    in_zarr = any(part.lower().endswith(".zarr") for part in path.split(os.sep))
    decoder = _DECODERS.get(".zarr" if in_zarr else os.path.splitext(path)[1].lower())
    if decoder is None:
        raise CamaeError(f"{path}: not an image format that can be read ({', '.join(_DECODERS)})")
    try:
        image = decoder(path, index, sizes_only)
    except CamaeError:
        raise
    except PermissionError:
        raise CamaeError(f"{path}: no permission to read it") from None
    except Exception as error:  # decoders raise anything on damaged files; the user needs one sentence
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CamaeError(f"{path}: damaged, truncated or not what its name says ({reason})") from error
    if image.dtype not in ACCEPTED:
        raise CamaeError(f"{path}: pixels are {image.dtype}, only uint8, uint16 and float32 are read")
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise CamaeError(f"{path}: has shape {image.shape}, a plane of (height, width) is needed")
    return image


def _tiff(path: str, index: tuple[int, ...], sizes_only: bool) -> np.ndarray:
    import tifffile

    # The checks of the native reader hold here too: tifffile would return the first plane of a stack in one page.
    address = f"{path}#{','.join(map(str, index))}" if index else path
    pages = index or range(native.describe(address, any_reader=True).pages)
    with tifffile.TiffFile(path) as file:
        chosen = [file.pages[i] for i in pages]
        first, planes = chosen[0], []
        for page in chosen:
            if page.shape != first.shape or page.dtype != first.dtype:
                raise CamaeError(f"{path}: its pages differ in size or dtype: name one, as in {path}#0")
            image = np.empty(page.shape, page.dtype) if sizes_only else page.asarray()
            if image.ndim == 3 and getattr(page, "planarconfig", 1) == 1:
                image = np.moveaxis(image, -1, 0)
            planes.append(image.reshape(-1, *image.shape[-2:]))
    stacked = np.concatenate(planes)
    return stacked[0] if len(stacked) == 1 else stacked


def _png(path: str, index: tuple[int, ...], sizes_only: bool) -> np.ndarray:
    _refuse_index(path, index)
    with open(path, "rb") as stream:
        return _png_plane(path, stream, sizes_only)


def _png_plane(name: str, stream: BinaryIO, sizes_only: bool) -> np.ndarray:
    from PIL import Image

    with Image.open(stream) as picture:
        if picture.format != "PNG":
            raise CamaeError(f"{name}: is a {picture.format}, not a PNG")
        dtype = {"L": np.uint8, "I;16": np.uint16, "I;16B": np.uint16}.get(picture.mode)
        if dtype is None:
            raise CamaeError(f"{name}: is of mode {picture.mode}, one gray plane of 8 or 16 bit is needed")
        frames = int(getattr(picture, "n_frames", 1))
        if frames > 1:
            raise CamaeError(f"{name}: holds {frames} frames where one is meant: write each as a file")
        if sizes_only:
            return np.empty(picture.size[::-1], dtype)
        return np.asarray(picture).astype(dtype, copy=False)


def _refuse_index(path: str, index: tuple[int, ...]) -> None:
    if any(index):
        raise CamaeError(f"{path}: holds one plane, so there is no page {index[0]}")


def _jpeg2000(path: str, data: bytes) -> np.ndarray:
    _check_jpeg2000_size(path, data)
    image = optional_module("imagecodecs", f"{path}: JPEG 2000").jpeg2k_decode(data)
    if image.ndim != 2:
        raise CamaeError(f"{path}: is a color image {image.shape}, one gray plane is needed")
    return image


def _check_jpeg2000_size(path: str, data: bytes) -> None:
    """Raise CamaeError when the codestream's SIZ marker claims far more pixels than its bytes can hold."""
    at = data.find(b"\xff\x4f\xff\x51")
    if at < 0 or len(data) < at + 24:
        raise CamaeError(f"{path}: is no JPEG 2000 image")
    right, bottom, left, top = struct.unpack(">IIII", data[at + 8 : at + 24])
    pixels = max(right - left, 0) * max(bottom - top, 0)
    if pixels > max(1 << 20, _JPEG2000_RATIO * len(data)):
        raise CamaeError(f"{path}: claims {pixels:,} pixels in {len(data):,} bytes: it is damaged")


def _jp2(path: str, index: tuple[int, ...], sizes_only: bool) -> np.ndarray:
    _refuse_index(path, index)
    with open(path, "rb") as stream:
        return _jpeg2000(path, stream.read())


def _parquet(path: str, index: tuple[int, ...], sizes_only: bool) -> np.ndarray:
    """One encoded image of a Parquet file, as RxRx3-core keeps them: `#row` in a struct column with `bytes`."""
    import pyarrow.parquet

    if len(index) != 1:
        raise CamaeError(f"{path}: holds one image per row: name one, as in {path}#0")
    metadata, row = pyarrow.parquet.read_metadata(local_path(path)), index[0]
    for group in range(metadata.num_row_groups):
        n = metadata.row_group(group).num_rows
        if row < n:
            data = _row_group(path, os.stat(path).st_mtime_ns, group)[row]
            name = f"{path}#{index[0]}"
            if not isinstance(data, bytes):
                raise CamaeError(f"{name}: the row holds no encoded image")
            if data[:4] == b"\x89PNG":
                return _png_plane(name, io.BytesIO(data), sizes_only)
            return _jpeg2000(name, data)
        row -= n
    raise CamaeError(f"{path}: has no row {index[0]}")


@lru_cache(maxsize=4)
def _row_group(path: str, mtime_ns: int, group: int) -> list[bytes]:
    """Encoded images of one row group: Parquet is read by groups, and planes of a site lie in one."""
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(local_path(path))
    cells = file.read_row_group(group, columns=[image_column(file.schema_arrow)]).column(0).to_pylist()
    return [cell["bytes"] if isinstance(cell, dict) else cell for cell in cells]


def image_column(schema: pyarrow.Schema) -> str:
    """Name of the Parquet column of encoded images: a struct with `bytes` first, then a binary one."""
    import pyarrow as pa

    for wanted in (pa.types.is_struct, pa.types.is_binary, pa.types.is_large_binary):
        for field in schema:
            if wanted(field.type):
                return field.name
    raise CamaeError(f"the Parquet file has no column of encoded images: it has {', '.join(schema.names)}")


_DECODERS: dict[str, Decoder] = {
    ".tif": _tiff,
    ".tiff": _tiff,
    ".png": _png,
    ".jp2": _jp2,
    ".parquet": _parquet,
    ".zarr": zarr_planes.read_plane,
    **dict.fromkeys(vendor.SUFFIXES, vendor.read_plane),
}
