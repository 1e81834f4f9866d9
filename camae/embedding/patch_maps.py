"""Patch maps: the tokens of an image's patches at their places, put together from its tiles."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from camae.embedding.windows import Window


def stitch(tiles: Sequence[torch.Tensor], windows: Sequence[Window], patch: int) -> torch.Tensor:
    """The map (..., h, w, D) of tiles side by side, each (..., N, D) with its patches in rows.

    windows: of the tiles, a whole number of patches apart. The map spans them; patches of tiles that were left out are
    NaN.
    """
    top, left = min(w.y for w in windows), min(w.x for w in windows)
    height = max(w.y + w.height // patch * patch for w in windows) - top
    width = max(w.x + w.width // patch * patch for w in windows) - left
    shape = (*tiles[0].shape[:-2], height // patch, width // patch, tiles[0].shape[-1])
    whole = tiles[0].new_full(shape, torch.nan)
    for tile, window in zip(tiles, windows, strict=True):
        h, w = window.height // patch, window.width // patch
        y, x = (window.y - top) // patch, (window.x - left) // patch
        whole[..., y : y + h, x : x + w, :] = tile.unflatten(-2, (h, w))
    return whole
