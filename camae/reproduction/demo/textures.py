"""Procedural textures and point rendering on a periodic canvas, in NumPy.

Canvases are square, shape (L, L), float32; lengths are pixels.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]


@cache
def _frequencies(side: int) -> Array:
    fy, fx = np.fft.fftfreq(side), np.fft.rfftfreq(side)
    return (fy[:, None] ** 2 + fx[None] ** 2).astype(np.float32)


def blur(image_LL: Array, sigma: float) -> Array:
    """Periodic Gaussian blur, sigma in pixels."""
    response = np.exp(-2 * np.pi**2 * sigma**2 * _frequencies(len(image_LL)))
    return np.fft.irfft2(np.fft.rfft2(image_LL) * response, s=image_LL.shape).astype(np.float32)


def band_noise(rng: np.random.Generator, side: int, scale: float) -> Array:
    """Random texture whose grains are about `scale` pixels, zero mean and unit variance, shape (L, L)."""
    squared = _frequencies(side) * np.float32(2 * np.pi**2 * scale**2)
    spectrum = (
        np.fft.rfft2(rng.standard_normal((side, side), dtype=np.float32)) * squared * np.exp(-2 * squared)
    )
    texture = np.fft.irfft2(spectrum, s=(side, side)).astype(np.float32)
    return texture / texture.std()


def splat(side: int, y: Array, x: Array, weight: Array) -> Array:
    """Bilinear sum of points on the torus, shape (L, L)."""
    y0, x0 = np.floor(y), np.floor(x)
    fy, fx = (y - y0).ravel(), (x - x0).ravel()
    rows, columns, weight = y0.astype(np.int64).ravel(), x0.astype(np.int64).ravel(), weight.ravel()
    flat = np.zeros(side * side)
    for row, wy in ((rows % side, 1 - fy), ((rows + 1) % side, fy)):
        for column, wx in ((columns % side, 1 - fx), ((columns + 1) % side, fx)):
            flat += np.bincount(row * side + column, weight * wy * wx, minlength=side * side)
    return flat.reshape(side, side).astype(np.float32)
