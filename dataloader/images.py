"""Pixels of one plane, one crop, one site, with errors that name the file and say what is wrong with it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence

import numpy as np

from camae.dataloader.manifest import Manifest
from camae.errors import CamaeError, MissingFileError

_ADDRESS = re.compile(r"^(?P<file>.+?)(?:#(?P<index>\d+(?:,\d+)*))?$", re.DOTALL)
_ACCEPTED = (np.uint8, np.uint16, np.float32)


def split_address(address: str) -> tuple[str, tuple[int, ...]]:
    """`file.tif#2` -> ("file.tif", (2,)); `images.zarr#0,3` -> ("images.zarr", (0, 3)); no `#` -> ()."""
    match = _ADDRESS.match(address)
    assert match is not None
    index = match["index"]
    return match["file"], tuple(int(i) for i in index.split(",")) if index else ()


def read_plane(path: str | os.PathLike[str]) -> np.ndarray:
    """One whole plane (H, W), uint8, uint16 or float32 as stored.

    Raises MissingFileError or CamaeError with one sentence naming the file.
    """
    pages = _decode(os.fspath(path), sizes_only=False)
    if pages.ndim != 2:
        raise CamaeError(
            f"{path}: holds {pages.shape[0]} pages where one plane is meant: name one, as in {path}#0"
        )
    return pages


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(H, W) in pixels, from the header alone where the format allows."""
    H, W = _decode(os.fspath(path), sizes_only=True).shape[-2:]
    return H, W


def read_crops(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    y: int,
    x: int,
    size: int,
    backend: str | None = None,
) -> np.ndarray:
    """One square window out of every plane of a site: (C, size, size) in the stored dtype.

    paths: one path per channel, or one multi-page file whose pages are the channels.
    y, x:  top left corner in pixels.
    Raises CamaeError when a file is missing or damaged, planes differ in size or dtype, or the window leaves
    the image.
    """
    planes: list[np.ndarray] = []
    named = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    for path in named:
        pages = _decode(os.fspath(path), sizes_only=False)
        if pages.ndim == 3 and len(named) > 1:
            raise CamaeError(
                f"{path}: holds {len(pages)} pages where one plane is meant: name one, as in {path}#0"
            )
        planes.extend(pages if pages.ndim == 3 else [pages])
    check_siblings(
        planes, [str(p) for p in named] if len(named) == len(planes) else [str(named[0])] * len(planes)
    )
    H, W = planes[0].shape
    if y < 0 or x < 0 or y + size > H or x + size > W:
        raise CamaeError(
            f"{named[0]}: a crop of {size} pixels at ({y}, {x}) does not fit into the image of {H}x{W} pixels"
        )
    return np.stack([plane[y : y + size, x : x + size] for plane in planes])


def check_siblings(planes: Sequence[np.ndarray], names: Sequence[str]) -> None:
    """Raises CamaeError when the planes of one site differ in size or dtype."""
    first = planes[0]
    for plane, name in zip(planes, names, strict=True):
        if plane.shape != first.shape:
            raise CamaeError(
                f"{name}: is {_size(plane)} pixels but {names[0]} of the same site is {_size(first)}"
            )
        if plane.dtype != first.dtype:
            raise CamaeError(f"{name}: is {plane.dtype} but {names[0]} of the same site is {first.dtype}")


def _size(plane: np.ndarray) -> str:
    return "x".join(str(n) for n in plane.shape)


def read_site(
    manifest: Manifest, row: int, channels: Sequence[str] | None = None, check_constant: bool = False
) -> tuple[np.ndarray, list[str]]:
    """A whole site: (image (C, H, W), names of its C channels). `channels` picks and orders them.

    check_constant: also refuse planes that are constant or hold NaN.
    """
    return _site(manifest, row, channels, check_constant, None)


def read_window(
    manifest: Manifest,
    row: int,
    y: int,
    x: int,
    size: int,
    channels: Sequence[str] | None = None,
    backend: str | None = None,
) -> tuple[np.ndarray, list[str]]:
    """One window of a site: (image (C, size, size), names of its C channels)."""
    return _site(manifest, row, channels, False, (y, x, size, backend))


def _site(
    manifest: Manifest,
    row: int,
    channels: Sequence[str] | None,
    check_constant: bool,
    window: tuple[int, int, int, str | None] | None,
) -> tuple[np.ndarray, list[str]]:
    names = list(channels) if channels is not None else manifest.site_channels(row)
    paths = [manifest.path(row, name) for name in names]
    planes: list[np.ndarray] = []
    for name, path in zip(names, paths, strict=True):
        try:
            plane = read_plane(path) if window is None else read_crops([path], *window)[0]
            illumination = manifest.illumination_path(row, name)
            if illumination is not None:
                y, x = (0, 0) if window is None else window[:2]
                plane = correct_illumination(plane, illumination, y, x)
            planes.append(plane)
            check_siblings(planes, paths[: len(planes)])
            if check_constant:
                check_signal(plane, path)
        except CamaeError as error:
            raise type(error)(f"{manifest.where(row, name)}: {error}") from error
    return np.stack(planes), names


def check_signal(plane: np.ndarray, name: str) -> None:
    """Raises CamaeError when a plane holds NaN or infinity, or one value only."""
    if plane.dtype.kind == "f" and not np.isfinite(plane).all():
        raise CamaeError(f"{name}: holds values that are not numbers (NaN or infinity)")
    if plane.min() == plane.max():
        raise CamaeError(f"{name}: every pixel is {plane.flat[0]}, the plane is constant")


def correct_illumination(plane: np.ndarray, path: str, y: int, x: int) -> np.ndarray:
    """Divide a window that starts at (y, x) by its part of an illumination function (H, W) in a .npy file.

    The result is rounded and clipped to the plane's own integer dtype, so that batches keep one dtype.
    """
    try:
        function = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise MissingFileError(f"{path}: the illumination function named for this plane is missing") from None
    except (OSError, ValueError) as error:
        raise CamaeError(f"{path}: cannot be read as an illumination function ({error})") from error
    H, W = plane.shape
    part = np.asarray(function[y : y + H, x : x + W], dtype=np.float32)
    if part.shape != plane.shape or not (part > 0).all():
        raise CamaeError(
            f"{path}: the illumination function of {_size(function)} must cover the image and be positive"
        )
    corrected = plane / part
    if plane.dtype.kind == "f":
        return corrected.astype(plane.dtype)
    return np.clip(np.rint(corrected), 0, np.iinfo(plane.dtype).max).astype(plane.dtype)


def _decode(address: str, sizes_only: bool) -> np.ndarray:
    """(H, W), or (pages, H, W) for a multi-page file without `#page`. Only the shape counts if sizes_only."""
    path, index = split_address(address)
    if os.path.exists(address):
        path, index = address, ()
    refuse_remote(path)
    if not os.path.exists(path):
        raise MissingFileError(f"{path}: no such file")
    reader = _READERS.get(os.path.splitext(path)[1].lower())
    if reader is None:
        raise CamaeError(f"{path}: not an image format that can be read (TIFF, PNG, JPEG 2000)")
    try:
        image = reader(path, index, sizes_only)
    except CamaeError:
        raise
    except PermissionError:
        raise CamaeError(f"{path}: no permission to read it") from None
    except Exception as error:  # decoders raise anything on damaged files; the user needs one sentence
        raise CamaeError(
            f"{path}: damaged, truncated or not what its name says ({_first_line(error)})"
        ) from error
    if image.dtype not in _ACCEPTED:
        raise CamaeError(f"{path}: pixels are {image.dtype}, only uint8, uint16 and float32 are read")
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise CamaeError(f"{path}: has shape {image.shape}, a plane of (height, width) is needed")
    return image


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def refuse_remote(path: str) -> None:
    """Raises CamaeError for an address on the network, with the command that fetches it."""
    if path.startswith("s3://"):
        raise CamaeError(
            f"{path}: is on S3 and camae reads local files only: fetch it with "
            f"`aws s3 cp --no-sign-request {path} .` and point the manifest at the copy"
        )
    if "://" in path:
        raise CamaeError(f"{path}: is a network address and camae reads local files only: download it first")


def _read_tiff(path: str, index: tuple[int, ...], sizes_only: bool) -> np.ndarray:
    import tifffile

    with tifffile.TiffFile(path) as file:
        pages = file.pages
        chosen = [pages[i] for i in index[:1]] if index else list(pages)
        first = chosen[0]
        planes = []
        for page in chosen:
            if len(page.shape) == 3 and page.shape[0] != 1 and getattr(page, "planarconfig", 1) != 2:
                raise CamaeError(f"{path}: is a colour image {page.shape}, one grey plane is needed")
            if page.shape != first.shape or page.dtype != first.dtype:
                raise CamaeError(f"{path}: its pages differ in size or dtype: name one, as in {path}#0")
            planes.append(np.empty(page.shape, page.dtype) if sizes_only else page.asarray())
    image = np.concatenate([p.reshape(-1, *p.shape[-2:]) for p in planes])
    return image[0] if len(image) == 1 else image


def _read_png(path: str, index: tuple[int, ...], sizes_only: bool) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as picture:
        dtype = {"L": np.uint8, "I;16": np.uint16, "I;16B": np.uint16}.get(picture.mode)
        if dtype is None:
            raise CamaeError(
                f"{path}: is an image of mode {picture.mode}, one grey plane of 8 or 16 bit is needed"
            )
        if sizes_only:
            return np.empty(picture.size[::-1], dtype)
        return np.asarray(picture).astype(dtype, copy=False)


def _read_jp2(path: str, index: tuple[int, ...], sizes_only: bool) -> np.ndarray:
    import imagecodecs

    with open(path, "rb") as stream:
        image = imagecodecs.jpeg2k_decode(stream.read())
    if image.ndim != 2:
        raise CamaeError(f"{path}: is a colour image {image.shape}, one grey plane is needed")
    return image


_READERS: dict[str, Callable[[str, tuple[int, ...], bool], np.ndarray]] = {
    ".tif": _read_tiff,
    ".tiff": _read_tiff,
    ".png": _read_png,
    ".jp2": _read_jp2,
}
