"""Connected components of a mask: how many there are."""

from __future__ import annotations

import numpy as np


def count_pieces(mask_HW: np.ndarray) -> int:
    """Connected components of a boolean mask (H, W); pixels that touch at a corner are connected.

    Runs of pixels of each row are joined with those of the next row that they touch.
    """
    steps = np.diff(np.pad(mask_HW, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(steps == 1)
    ends = np.nonzero(steps == -1)[1]
    width = mask_HW.shape[1] + 2
    first = np.searchsorted(rows * width + ends, (rows + 1) * width + starts, "left")
    last = np.searchsorted(rows * width + starts, (rows + 1) * width + ends, "right")
    counts = np.maximum(last - first, 0)
    above = np.repeat(np.arange(len(rows)), counts)
    below = np.arange(len(above)) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
    return _count_groups(len(rows), above, below)


def _count_groups(count: int, a: np.ndarray, b: np.ndarray) -> int:
    """Groups of `count` things of which a[i] and b[i] belong together."""
    root = np.arange(count)
    while True:
        root_a, root_b = root[a], root[b]
        if np.array_equal(root_a, root_b):
            return int((root == np.arange(count)).sum())
        np.minimum.at(root, np.maximum(root_a, root_b), np.minimum(root_a, root_b))
        while not np.array_equal(root, root[root]):
            root = root[root]
