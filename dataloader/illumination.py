"""Illumination functions: smooth fields by which planes are divided, one `.npy` (H, W) per plate and channel."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from camae.errors import CamaeError, MissingFileError


def corrected(plane: np.ndarray, path: str, y: int, x: int, symmetry: int = 0) -> np.ndarray:
    """A window (h, w) whose top left corner is (y, x), divided by its part of the illumination function.

    symmetry: how the window was turned (see sampling.symmetric). Integers are rounded and clipped to their own
    dtype, so that batches keep one dtype. Raises CamaeError when the function is missing, too small or not positive.
    """
    from camae.dataloader.sampling import symmetric

    function = _function(path)
    h, w = plane.shape[::-1] if symmetry & 4 else plane.shape
    part = np.asarray(function[y : y + h, x : x + w], dtype=np.float32)
    if part.shape != (h, w) or not (part > 0).all():
        size = "x".join(str(n) for n in function.shape)
        raise CamaeError(f"{path}: the illumination function of {size} must cover the image and be positive")
    quotient = plane / symmetric(part[None], symmetry)[0]
    if plane.dtype.kind == "f":
        return quotient.astype(plane.dtype)
    return np.clip(np.rint(quotient), 0, np.iinfo(plane.dtype).max).astype(plane.dtype)


@lru_cache(maxsize=256)
def _function(path: str) -> np.ndarray:
    try:
        function = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise MissingFileError(f"{path}: the illumination function named for this plane is missing") from None
    except (OSError, ValueError) as error:
        raise CamaeError(f"{path}: cannot be read as an illumination function ({error})") from error
    if function.ndim != 2:
        raise CamaeError(f"{path}: an illumination function is (height, width), this is {function.shape}")
    return function
