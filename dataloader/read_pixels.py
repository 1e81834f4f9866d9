"""Image reading: pixels of a plane, a window or a site in their stored dtype, by the chosen image back-end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from camae.dataloader.backends import native
from camae.dataloader.backends.addresses import check_window, is_tiff, refuse_remote, split_address
from camae.dataloader.backends.decoders import decode
from camae.dataloader.illumination import corrected
from camae.dataloader.manifest import Manifest
from camae.errors import CamaeError

# `native` reads TIFFs by csrc/ and everything else by Python packages; `tifffile` is the plain reference; `dali`
# reads single-page TIFFs, here on the CPU; training and screens read them on the model's device (dali_sites.py). The
# measurement behind the default is `pytest bench/ -k reader`.
READERS = ("native", "tifffile", "dali")
Path = str | os.PathLike[str]


class PlaneKind(NamedTuple):
    """Size and dtype of a plane, from its header alone where the format allows.

    height, width: in pixels.
    decoded_share: share of the plane, 0 to 1, that is decoded to read one small window of it.
    """

    height: int
    width: int
    dtype: np.dtype
    decoded_share: float

    def __str__(self) -> str:
        return f"{self.height}x{self.width} {self.dtype}"

    def matches(self, other: PlaneKind) -> bool:
        """Equality of size and dtype, as planes of one site must have."""
        return self[:3] == other[:3]


def checked_reader(reader: str | None) -> str:
    """Name of an image back-end, the default for None. Raises CamaeError for an unknown one."""
    name = reader or READERS[0]
    if name not in READERS:
        raise CamaeError(f"reader={name!r}: unknown image back-end, choose one of {', '.join(READERS)}")
    return name


def _address(path: object) -> str:
    if not isinstance(path, str | os.PathLike):
        raise CamaeError(f"the path of a plane is a value of type {type(path).__name__}; give text or a path")
    return os.fspath(path)


def read_plane(path: Path, reader: str | None = None) -> np.ndarray:
    """One whole plane (H, W), uint8, uint16 or float32 as stored.

    path:   a file, or a plane of one as `file.tif#page`.
    reader: "native" (default), "tifffile" or "dali".
    Raises MissingFileError or CamaeError with one sentence naming the file.
    """
    name, address = checked_reader(reader), _address(path)
    if name == "dali":
        return _through_dali([address], 0, 0, None)[0]
    pages = _planes(address, None, name)
    if len(pages) != 1:
        raise _several_planes(address, len(pages))
    return pages[0]


def image_size(path: Path) -> tuple[int, int]:
    """(H, W) of a plane in pixels, from the header alone where the format allows."""
    return plane_kind(os.fspath(path))[:2]


def plane_kind(address: str, reader: str | None = None) -> PlaneKind:
    """Size and dtype of a plane. Raises MissingFileError or CamaeError naming the file."""
    if is_tiff(address) and checked_reader(reader) != "tifffile":
        refuse_remote(address)
        layout = native.describe(address)
        if layout.planes != 1:
            raise _several_planes(address, layout.planes)
        share = layout.block_height * layout.block_width / (layout.height * layout.width)
        if layout.codec == "uncompressed":
            share = 0.0
        elif layout.block_width == layout.width:
            share /= 2  # decoding of a strip ends with the window: halfway, on average
        return PlaneKind(layout.height, layout.width, layout.dtype, share)
    image = decode(address, sizes_only=True)
    if image.ndim != 2:
        raise _several_planes(address, len(image))
    return _kind_of(image)


def _kind_of(plane: np.ndarray) -> PlaneKind:
    height, width = plane.shape
    return PlaneKind(height, width, plane.dtype, 1.0)


def read_crops(
    paths: Path | Sequence[Path], y: int, x: int, size: int, reader: str | None = None
) -> np.ndarray:
    """One square window of every plane of a site: (C, size, size) in the stored dtype.

    paths:  one path per channel, or one multi-page file whose pages are the channels.
    y, x:   top left corner in pixels.
    reader: "native" (default), "tifffile" or "dali".
    Raises CamaeError when a file is missing or damaged, planes differ in size or dtype, or the window leaves
    the image.
    """
    name = checked_reader(reader)
    given = [paths] if isinstance(paths, str | os.PathLike) else paths
    named = [_address(path) for path in given]
    if not named:
        raise CamaeError("no path was given: one per channel is needed")
    _check_window(y, x, size)
    if len(named) > 1:
        _check_equal_kinds(named, name)
    if name == "native" and len(named) > 1 and all(map(is_tiff, named)):
        return _native_windows(named, y, x, size)
    if name == "dali":
        return _through_dali(named, y, x, size)
    return np.concatenate([_planes(path, (y, x, size), name) for path in named])


def _through_dali(named: list[str], y: int, x: int, size: int | None) -> np.ndarray:
    """The same window of several files, or all of each for None, by DALI on the CPU: (C, h, w)."""
    from camae.dataloader.backends.dali import checked_layout, read_windows

    layout = checked_layout(named[0])
    shape = (layout.height, layout.width) if size is None else (size, size)
    return read_windows(named, [y] * len(named), [x] * len(named), shape).numpy()


def _native_windows(named: list[str], y: int, x: int, size: int) -> np.ndarray:
    first = plane_kind(named[0])
    check_window(named[0], y, x, size, first.height, first.width)
    out = np.empty((len(named), size, size), first.dtype)
    for _, error in native.read_windows(named, [y] * len(named), [x] * len(named), out):
        raise error
    return out


def _planes(address: str, window: tuple[int, int, int] | None, reader: str) -> np.ndarray:
    """All planes of an address, whole or one window (y, x, size) of them: (n, h, w)."""
    refuse_remote(address)
    if is_tiff(address) and reader != "tifffile":
        layout = native.describe(address)
        y, x, h, w = 0, 0, layout.height, layout.width
        if window is not None:
            check_window(address, *window, layout.height, layout.width)
            y, x, h = window
            w = h
        out = np.empty((layout.planes, h, w), layout.dtype)
        for _, error in native.read_windows([address], [y], [x], out, n_planes=[len(out)]):
            raise error
        return out
    image = decode(address)
    image = image[None] if image.ndim == 2 else image
    if window is None:
        return image
    check_window(address, *window, *image.shape[1:])
    y, x, size = window
    return image[:, y : y + size, x : x + size]


def _several_planes(address: str, n: int) -> CamaeError:
    file, index = split_address(address)
    pages = native.describe(address, any_reader=True).pages if is_tiff(address) else n
    if index or pages == 1:
        return CamaeError(
            f"{address}: has {n} samples per pixel (color, or channels side by side) where one gray plane is meant: "
            "write each as a page or file of its own"
        )
    return CamaeError(f"{address}: holds {n} planes where one is meant: name a page, as in {file}#0")


def differs(path: str, kind: PlaneKind, sibling: str, other: PlaneKind) -> CamaeError:
    """The error for a plane whose size or dtype is not that of its site."""
    return CamaeError(f"{path}: is {kind} but {sibling} of the same site is {other}")


def _check_equal_kinds(paths: Sequence[str], reader: str) -> None:
    """Raises CamaeError when the planes of one site, a file each, differ in size or dtype."""
    first = plane_kind(paths[0], reader)
    for path in paths[1:]:
        kind = plane_kind(path, reader)
        if not kind.matches(first):
            raise differs(path, kind, paths[0], first)


def _check_window(*numbers: object) -> None:
    for number in numbers:
        if not isinstance(number, int | np.integer):
            raise CamaeError(f"y, x and size of a window are numbers of pixels, not {number!r}")


def read_site(
    manifest: Manifest,
    row: int,
    channels: Sequence[str] | None = None,
    check_constant: bool = False,
    reader: str | None = None,
) -> tuple[np.ndarray, list[str]]:
    """One whole site: (image (C, H, W) in the stored dtype, names of its C channels).

    channels:       picks and orders the channels; None takes all that the site has.
    check_constant: also refuse planes that are constant or hold NaN.
    reader:         "native" (default), "tifffile" or "dali".
    Raises MissingFileError or CamaeError naming row, channel and file.
    """
    names = list(channels) if channels is not None else manifest.site_channels(row)
    return _site(manifest, row, names, None, check_constant, checked_reader(reader)), names


def read_window(
    manifest: Manifest,
    row: int,
    y: int,
    x: int,
    size: int,
    channels: Sequence[str] | None = None,
    reader: str | None = None,
) -> tuple[np.ndarray, list[str]]:
    """One square window of a site: (image (C, size, size), names of its C channels). Arguments as in read_site."""
    names = list(channels) if channels is not None else manifest.site_channels(row)
    return _site(manifest, row, names, (y, x, size), False, checked_reader(reader)), names


def _site(
    manifest: Manifest,
    row: int,
    names: Sequence[str],
    window: tuple[int, int, int] | None,
    check_constant: bool,
    reader: str,
) -> np.ndarray:
    planes: list[np.ndarray] = []
    paths: list[str] = []
    kinds: list[PlaneKind] = []
    y, x = window[:2] if window is not None else (0, 0)
    for name in names:
        path = manifest.path(row, name)
        paths.append(path)
        try:
            kinds.append(plane_kind(path, reader))
            if not kinds[-1].matches(kinds[0]):
                raise differs(path, kinds[-1], paths[0], kinds[0])
            plane = read_plane(path, reader) if window is None else read_crops(path, *window, reader)[0]
            illumination = manifest.illumination_path(row, name)
            if illumination is not None:
                plane = corrected(plane, illumination, y, x)
            if check_constant:
                _check_signal(plane, path)
        except CamaeError as error:
            raise type(error)(f"{manifest.where(row, name)}: {error}") from error
        planes.append(plane)
    return np.stack(planes)


def _check_signal(plane: np.ndarray, name: str) -> None:
    """Raises CamaeError when a plane holds NaN or infinity, or one value only."""
    if plane.dtype.kind == "f" and not np.isfinite(plane).all():
        raise CamaeError(f"{name}: holds values that are not numbers (NaN or infinity)")
    if plane.min() == plane.max():
        raise is_constant(name, plane.flat[0])


def is_constant(name: str, value: object) -> CamaeError:
    """The error for a plane in which every pixel has this value."""
    return CamaeError(f"{name}: every pixel is {value}, the plane is constant")
