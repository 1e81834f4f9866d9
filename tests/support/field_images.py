"""Image arrays of several planes, by their axes."""

from __future__ import annotations

import numpy as np

SIZES = {"T": 2, "Z": 3, "C": 2, "Y": 16, "X": 24}


def image(axes: str, seed: int = 0, dtype: type = np.uint16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 250, [SIZES[a] for a in axes]).astype(dtype)
