"""Illumination correction: planes divided by a smooth field, one `.npy` (H, W) per plate and channel."""

from __future__ import annotations

import numpy as np

from camae.dataloader.sampling import symmetric
from camae.errors import CamaeError, MissingFileError


def corrected(plane: np.ndarray, path: str, y: int, x: int, symmetry: int = 0) -> np.ndarray:
    """Illumination correction of one window: its pixels divided by the illumination function there.

    plane:    (h, w), a window of a plane or all of it.
    path:     the illumination function, `.npy` of (H, W) numbers.
    y, x:     top left corner of the window in pixels.
    symmetry: how the window was flipped or rotated (see sampling.symmetric).
    Returns (h, w) in the plane's dtype: integers are rounded and clipped, so that batches keep one dtype.
    Raises MissingFileError when the function is missing, CamaeError when it is too small or not positive.
    """
    quotient = plane / function_window(path, y, x, plane.shape, symmetry)
    if plane.dtype.kind == "f":
        return quotient.astype(plane.dtype)
    return np.clip(np.rint(quotient), 0, np.iinfo(plane.dtype).max).astype(plane.dtype)


def function_window(path: str, y: int, x: int, shape: tuple[int, ...], symmetry: int) -> np.ndarray:
    """Illumination function over a window of `shape` (h, w), flipped or rotated as it is: float32.

    Arguments and errors as in `corrected`; shape: of the window after its symmetry.
    """
    h, w = shape[::-1] if symmetry & 4 else shape
    part = _window(path, y, x, h, w)
    if part.shape != (h, w):
        raise CamaeError(
            f"{path}: the illumination function must cover the image, and ends before its rows {y} to {y + h} or "
            f"columns {x} to {x + w} do; give one of the image's size"
        )
    if not (part > 0).all():
        raise CamaeError(
            f"{path}: the illumination function must be positive, and has a value that is 0, negative or NaN; "
            "make it anew, or leave its column out of the manifest"
        )
    return symmetric(part[None], symmetry)[0]


def _window(path: str, y: int, x: int, h: int, w: int) -> np.ndarray:
    """Part of a two-dimensional .npy file, float32 (h, w).

    Only its rows are read, and they are not memory-mapped: a screen has thousands of these files, and one that is
    replaced under a mapping would end the process.
    """
    try:
        with open(path, "rb") as stream:
            version = np.lib.format.read_magic(stream)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }
            shape, columns_first, dtype = read_header[version](stream)
            if len(shape) != 2 or dtype.kind not in "iuf":
                raise CamaeError(
                    f"{path}: an illumination function is numbers of (height, width), this is {dtype} of {shape}"
                )
            if columns_first:
                shape, (y, x), (h, w) = shape[::-1], (x, y), (w, h)
            stream.seek(min(y, shape[0]) * shape[1] * dtype.itemsize, 1)
            rows = np.fromfile(stream, dtype, min(h, max(shape[0] - y, 0)) * shape[1]).reshape(-1, shape[1])
    except FileNotFoundError:
        raise MissingFileError(f"{path}: the illumination function named for this plane is missing") from None
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, CamaeError):
            raise
        raise CamaeError(f"{path}: cannot be read as an illumination function ({error})") from error
    part = rows[:, x : x + w].astype(np.float32)
    return part.T if columns_first else part
