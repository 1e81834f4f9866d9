"""From encoder tokens to vectors (paper, Figure 4 right)."""

from __future__ import annotations

import torch

from camae.errors import CamaeError
from camae.model.layout import TokenLayout

POOLS = ("mean", "cls", "per_channel")


def check_pool(pool: str) -> None:
    """Raises CamaeError for an unknown pooling."""
    if pool not in POOLS:
        raise CamaeError(f"pool {pool!r} is not one of {', '.join(POOLS)}")


def pool_tokens(tokens_TD: torch.Tensor, layout: TokenLayout, pool: str) -> list[torch.Tensor]:
    """One vector per sample: (D,) for "mean" (over patch tokens) and "cls", (C, D) for "per_channel".

    "per_channel" needs a layout in which every token is visible.
    """
    if pool == "cls":
        return list(tokens_TD[layout.class_index].float().unbind(0))
    if pool == "per_channel":
        patches_KND = tokens_TD[layout.patch_rows].float().unflatten(0, (layout.n_planes, layout.n_patches))
        return list(patches_KND.mean(1).split(layout.planes_per_sample))
    lengths = layout.lengths
    if len(set(lengths)) == 1:
        return list(tokens_TD.unflatten(0, (len(lengths), -1))[:, 1:].float().mean(1).unbind(0))
    return [tokens[1:].float().mean(0) for tokens in tokens_TD.split(lengths)]
