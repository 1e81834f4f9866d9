"""Whole planes of the formats that Python packages decode: PNG, JPEG 2000, Zarr, Parquet, and TIFF by tifffile."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from camae.errors import CamaeError, MissingBackendError, MissingFileError

_ADDRESS = re.compile(r"^(?P<file>.+?)(?:#(?P<index>\d+(?:,\d+)*))?$", re.DOTALL)
ACCEPTED = (np.uint8, np.uint16, np.float32)


def split_address(address: str) -> tuple[str, tuple[int, ...]]:
    """`file.tif#2` -> ("file.tif", (2,)); `images.zarr#0,3` -> ("images.zarr", (0, 3)); no `#` -> ()."""
    if address and "#" not in address:
        return address, ()
    match = _ADDRESS.match(address)
    if match is None:
        raise CamaeError("an empty path was given where an image is meant")
    index = match["index"]
    return match["file"], tuple(int(i) for i in index.split(",")) if index else ()


def is_tiff(address: str) -> bool:
    """Whether the name says TIFF."""
    return split_address(address)[0].lower().endswith((".tif", ".tiff"))


def refuse_remote(path: str) -> None:
    """Raises CamaeError for an address on the network, with the command that fetches it."""
    if path.startswith("s3://"):
        raise CamaeError(
            f"{path}: is on S3 and camae reads local files only: fetch it with "
            f"`aws s3 cp --no-sign-request {path} .` and point the manifest at the copy"
        )
    if "://" in path:
        raise CamaeError(f"{path}: is a network address and camae reads local files only: download it first")


def require(path: str) -> os.stat_result:
    """The status of a local file. Raises MissingFileError when it is not there, CamaeError when it may not be seen."""
    try:
        return os.stat(path)
    except PermissionError:
        raise CamaeError(f"{path}: no permission to read it") from None
    except OSError:
        raise MissingFileError(f"{path}: no such file") from None


def decode(address: str, sizes_only: bool = False) -> np.ndarray:
    """(H, W), or (pages, H, W) for a file of several planes without `#`; uint8, uint16 or float32.

    sizes_only: the pixels may be left unread, only shape and dtype count.
    Raises MissingFileError or CamaeError with one sentence naming the file.
    """
    refuse_remote(address)
    path, index = split_address(address)
    require(path)
    in_zarr = any(part.endswith(".zarr") for part in path.split(os.sep))
    reader = _READERS.get(".zarr" if in_zarr else os.path.splitext(path)[1].lower())
    if reader is None:
        raise CamaeError(f"{path}: not an image format that can be read ({', '.join(_READERS)})")
    try:
        image = reader(path, index, sizes_only)
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


def _needs(package: str, purpose: str) -> MissingBackendError:
    return MissingBackendError(f"{purpose} needs the package {package}, which is not installed")


def _read_tiff(path: str, index: tuple[int, ...], sizes_only: bool) -> np.ndarray:
    import tifffile

    with tifffile.TiffFile(path) as file:
        chosen = [file.pages[i] for i in index[:1]] if index else list(file.pages)
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


def _read_png(path: str, index: tuple[int, ...], sizes_only: bool) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as picture:
        if picture.format != "PNG":
            raise CamaeError(f"{path}: is a {picture.format}, not a PNG")
        dtype = {"L": np.uint8, "I;16": np.uint16, "I;16B": np.uint16}.get(picture.mode)
        if dtype is None:
            raise CamaeError(f"{path}: is of mode {picture.mode}, one gray plane of 8 or 16 bit is needed")
        if sizes_only:
            return np.empty(picture.size[::-1], dtype)
        return np.asarray(picture).astype(dtype, copy=False)


def _jpeg2000(path: str, data: bytes) -> np.ndarray:
    try:
        import imagecodecs
    except ImportError:
        raise _needs("imagecodecs", f"{path}: JPEG 2000") from None
    image = imagecodecs.jpeg2k_decode(data)
    if image.ndim != 2:
        raise CamaeError(f"{path}: is a color image {image.shape}, one gray plane is needed")
    return image


def _read_jp2(path: str, index: tuple[int, ...], sizes_only: bool) -> np.ndarray:
    with open(path, "rb") as stream:
        return _jpeg2000(path, stream.read())


def _read_parquet(path: str, index: tuple[int, ...], sizes_only: bool) -> np.ndarray:
    """One encoded image of a Parquet file, as RxRx3-core keeps them: `#row` in a struct column with `bytes`."""
    import pyarrow.parquet

    if len(index) != 1:
        raise CamaeError(f"{path}: holds one image per row: name one, as in {path}#0")
    metadata, row = pyarrow.parquet.read_metadata(path), index[0]
    for group in range(metadata.num_row_groups):
        n = metadata.row_group(group).num_rows
        if row < n:
            data = _row_group(path, os.stat(path).st_mtime_ns, group)[row]
            if data[:4] == b"\x89PNG":
                return _read_png_bytes(data)
            return _jpeg2000(f"{path}#{index[0]}", data)
        row -= n
    raise CamaeError(f"{path}: has no row {index[0]}")


@lru_cache(maxsize=4)
def _row_group(path: str, mtime_ns: int, group: int) -> list[bytes]:
    """Encoded images of one row group: Parquet is read by groups, and planes of a site lie in one."""
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path)
    cells = file.read_row_group(group, columns=[image_column(file.schema_arrow)]).column(0).to_pylist()
    return [cell["bytes"] if isinstance(cell, dict) else cell for cell in cells]


def image_column(schema: Any) -> str:
    """The name of the column that holds encoded images: a struct with `bytes` first, then a binary one."""
    import pyarrow as pa

    for wanted in (pa.types.is_struct, pa.types.is_binary, pa.types.is_large_binary):
        for field in schema:
            if wanted(field.type):
                return field.name
    raise CamaeError(f"the Parquet file has no column of encoded images: it has {', '.join(schema.names)}")


def _read_png_bytes(data: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture)


def _read_zarr(path: str, index: tuple[int, ...], sizes_only: bool) -> np.ndarray:
    try:
        import zarr
    except ImportError:
        raise _needs("zarr", f"{path}: OME-Zarr") from None
    array = zarr.open(path, mode="r")
    if not isinstance(array, zarr.Array):
        raise CamaeError(f"{path}: is a Zarr group, name the array in it")
    if len(index) != array.ndim - 2:
        raise CamaeError(
            f"{path}: has shape {array.shape}: name the {array.ndim - 2} leading indices, as in {path}#"
            + ",".join("0" * (array.ndim - 2))
        )
    if sizes_only:
        return np.empty(array.shape[-2:], array.dtype)
    return np.asarray(array[index]).astype(array.dtype.newbyteorder("="), copy=False)


_READERS: dict[str, Callable[[str, tuple[int, ...], bool], np.ndarray]] = {
    ".tif": _read_tiff,
    ".tiff": _read_tiff,
    ".png": _read_png,
    ".jp2": _read_jp2,
    ".parquet": _read_parquet,
    ".zarr": _read_zarr,
}
