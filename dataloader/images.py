"""Pixels of one plane, one crop, one site, with errors that name the file and say what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from camae.dataloader.backends import native
from camae.dataloader.backends.decoders import decode, is_tiff, refuse_remote, split_address
from camae.dataloader.illumination import corrected
from camae.dataloader.manifest import Manifest
from camae.errors import CamaeError

# `native` reads TIFFs by csrc/ and everything else by Python packages; `tifffile` is the plain reference; `dali`
# serves windows of single-page TIFFs. The measurement behind the default is `pytest bench/ -k reader`.
BACKENDS = ("native", "tifffile", "dali")
Path = str | os.PathLike[str]


def checked_backend(backend: str | None) -> str:
    """The back-end's name, the default for None. Raises CamaeError for an unknown one."""
    name = backend or BACKENDS[0]
    if name not in BACKENDS:
        raise CamaeError(f"backend={name!r}: unknown image back-end, choose one of {', '.join(BACKENDS)}")
    return name


def read_plane(path: Path, backend: str | None = None) -> np.ndarray:
    """One whole plane (H, W), uint8, uint16 or float32 as stored.

    Raises MissingFileError or CamaeError with one sentence naming the file.
    """
    name = checked_backend(backend)
    if name == "dali":
        raise CamaeError(
            f"{path}: the DALI back-end reads square windows only, use backend='native' for planes"
        )
    pages = _planes(os.fspath(path), None, name)
    if len(pages) != 1:
        raise _several(path, len(pages))
    return pages[0]


def image_size(path: Path) -> tuple[int, int]:
    """(H, W) in pixels, from the header alone where the format allows."""
    return plane_kind(os.fspath(path))[:2]


def plane_kind(address: str, backend: str | None = None) -> tuple[int, int, np.dtype, float]:
    """(H, W, dtype, share of the image that one small window makes its decoder work through, 0 to 1)."""
    if is_tiff(address) and checked_backend(backend) != "tifffile":
        refuse_remote(address)
        about = native.describe(address)
        if about["planes"] != 1:
            raise _several(address, about["planes"])
        H, W = about["height"], about["width"]
        share = about["block_height"] * about["block_width"] / (H * W)
        if about["block_width"] == W:
            share /= 2  # decoding of a strip ends with the window: halfway, on average
        return H, W, np.dtype(f"u{about['bits'] // 8}"), 0.0 if about["codec"] == "uncompressed" else share
    image = decode(address, sizes_only=True)
    if image.ndim != 2:
        raise _several(address, len(image))
    return image.shape[0], image.shape[1], image.dtype, 1.0


def read_crops(
    paths: Path | Sequence[Path], y: int, x: int, size: int, backend: str | None = None
) -> np.ndarray:
    """One square window out of every plane of a site: (C, size, size) in the stored dtype.

    paths: one path per channel, or one multi-page file whose pages are the channels.
    y, x:  top left corner in pixels.
    Raises CamaeError when a file is missing or damaged, planes differ in size or dtype, or the window leaves
    the image.
    """
    name = checked_backend(backend)
    named = [os.fspath(paths)] if isinstance(paths, str | os.PathLike) else [os.fspath(p) for p in paths]
    if not named:
        raise CamaeError("no path was given: one per channel is needed")
    if name == "native" and len(named) > 1 and all(map(is_tiff, named)):
        return _native_planes(named, y, x, size)
    if name == "dali":
        from camae.dataloader.backends.dali import read_windows

        return read_windows(named, [y] * len(named), [x] * len(named), size)
    planes: list[np.ndarray] = []
    names: list[str] = []
    for path in named:
        pages = _planes(path, (y, x, size), name)
        if len(named) > 1 and len(pages) != 1:
            raise _several(path, len(pages))
        planes.extend(pages)
        names += [path] * len(pages)
        check_siblings(planes, names)
    return np.stack(planes)


def _native_planes(named: list[str], y: int, x: int, size: int) -> np.ndarray:
    for path in named:
        refuse_remote(path)
    H, W, dtype, _ = plane_kind(named[0])
    _check_window(named[0], y, x, size, H, W)
    out = np.empty((len(named), size, size), dtype)
    for job, error in native.read_windows(named, [y] * len(named), [x] * len(named), out):
        other = plane_kind(named[job])
        if other[:3] != (H, W, dtype):
            raise _differs(named[job], other, named[0], (H, W, dtype))
        raise error
    return out


def _planes(address: str, window: tuple[int, int, int] | None, backend: str) -> np.ndarray:
    """All planes of an address, whole or one window of them: (n, h, w)."""
    refuse_remote(address)
    if is_tiff(address) and backend != "tifffile":
        about = native.describe(address)
        H, W = about["height"], about["width"]
        y, x, size = window if window is not None else (0, 0, 0)
        if window is not None:
            _check_window(address, y, x, size, H, W)
        shape = (about["planes"], H, W) if window is None else (about["planes"], size, size)
        out = np.empty(shape, f"u{about['bits'] // 8}")
        for _, error in native.read_windows([address], [y], [x], out, n_planes=[len(out)]):
            raise error
        return out
    image = decode(address)
    image = image[None] if image.ndim == 2 else image
    if window is None:
        return image
    y, x, size = window
    _check_window(address, y, x, size, *image.shape[1:])
    return image[:, y : y + size, x : x + size]


def _check_window(path: str, y: int, x: int, size: int, H: int, W: int) -> None:
    if y < 0 or x < 0 or size < 1 or y + size > H or x + size > W:
        raise CamaeError(
            f"{path}: a crop of {size} pixels at ({y}, {x}) does not fit into the image of {H}x{W} pixels"
        )


def _several(path: Path, n: int) -> CamaeError:
    return CamaeError(
        f"{path}: holds {n} planes where one is meant: name a page, as in {split_address(str(path))[0]}#0"
    )


def _differs(path: str, kind: tuple, sibling: str, other: tuple) -> CamaeError:
    return CamaeError(
        f"{path}: is {kind[0]}x{kind[1]} {kind[2]} but {sibling} of the same site is {other[0]}x{other[1]} {other[2]}"
    )


def check_siblings(planes: Sequence[np.ndarray], names: Sequence[str]) -> None:
    """Raises CamaeError when the planes of one site differ in size or dtype."""
    first = planes[0]
    for plane, name in zip(planes, names, strict=True):
        if plane.shape != first.shape or plane.dtype != first.dtype:
            raise _differs(name, (*plane.shape, plane.dtype), names[0], (*first.shape, first.dtype))


def read_site(
    manifest: Manifest,
    row: int,
    channels: Sequence[str] | None = None,
    check_constant: bool = False,
    backend: str | None = None,
) -> tuple[np.ndarray, list[str]]:
    """A whole site: (image (C, H, W), names of its C channels). `channels` picks and orders them.

    check_constant: also refuse planes that are constant or hold NaN.
    """
    names = list(channels) if channels is not None else manifest.site_channels(row)
    return _site(manifest, row, names, None, check_constant, checked_backend(backend)), names


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
    names = list(channels) if channels is not None else manifest.site_channels(row)
    return _site(manifest, row, names, (y, x, size), False, checked_backend(backend)), names


def _site(
    manifest: Manifest,
    row: int,
    names: Sequence[str],
    window: tuple[int, int, int] | None,
    check_constant: bool,
    backend: str,
) -> np.ndarray:
    planes: list[np.ndarray] = []
    paths: list[str] = []
    kinds: list[tuple] = []
    for name in names:
        paths.append(manifest.path(row, name))
        try:
            kinds.append(plane_kind(paths[-1], backend)[:3])
            if kinds[-1] != kinds[0]:
                raise _differs(paths[-1], kinds[-1], paths[0], kinds[0])
            plane = (
                read_plane(paths[-1], backend)
                if window is None
                else read_crops(paths[-1], *window, backend)[0]
            )
            illumination = manifest.illumination_path(row, name)
            if illumination is not None:
                plane = corrected(plane, illumination, *(window[:2] if window is not None else (0, 0)))
            if check_constant:
                check_signal(plane, paths[-1])
        except CamaeError as error:
            raise type(error)(f"{manifest.where(row, name)}: {error}") from error
        planes.append(plane)
    return np.stack(planes)


def check_signal(plane: np.ndarray, name: str) -> None:
    """Raises CamaeError when a plane holds NaN or infinity, or one value only."""
    if plane.dtype.kind == "f" and not np.isfinite(plane).all():
        raise CamaeError(f"{name}: holds values that are not numbers (NaN or infinity)")
    if plane.min() == plane.max():
        raise CamaeError(f"{name}: every pixel is {plane.flat[0]}, the plane is constant")
