"""Pooling of encoder tokens to embedding vectors (paper, Figure 4 right)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from camae.errors import CamaeError
from camae.model.token_layout import TokenLayout

POOLS = ("mean", "cls", "per_channel")


def check_pool(pool: str) -> None:
    """Raise CamaeError for an unknown pooling."""
    if pool not in POOLS:
        raise CamaeError(f"pool {pool!r} is not one of {', '.join(POOLS)}")


def pool_tokens(tokens_TD: torch.Tensor, layout: TokenLayout, pool: str) -> list[torch.Tensor]:
    """Pool tokens to one float32 vector per sample.

    Returns (D,) for "mean" (over visible patch tokens) and "cls", (C, D) for "per_channel", which needs a layout in
    which all planes of a sample show the same patches.
    """
    if pool == "cls":
        return list(tokens_TD[layout.class_index].float().unbind(0))
    samples = _patches(tokens_TD, layout)
    if pool == "mean":
        if isinstance(samples, torch.Tensor):
            return list(samples.mean(1).unbind(0))
        return [patches_SD.mean(0) for patches_SD in samples]
    planes = layout.planes_per_sample
    return [p_SD.unflatten(0, (c, -1)).mean(1) for p_SD, c in zip(samples, planes, strict=True)]


def _patches(tokens_TD: torch.Tensor, layout: TokenLayout) -> torch.Tensor | list[torch.Tensor]:
    """Patch tokens of each sample, float32: (B, S, D) where all have equally many, else a list of (S_i, D)."""
    lengths = layout.lengths
    if len(set(lengths)) == 1:
        return tokens_TD.unflatten(0, (len(lengths), -1))[:, 1:].float()
    return [tokens[1:].float() for tokens in tokens_TD.split(lengths)]


def average(vectors: Sequence[torch.Tensor], weights: Sequence[int]) -> torch.Tensor:
    """Weighted mean of vectors of equal shape; one vector comes back as it is."""
    if len(vectors) == 1:
        return vectors[0]
    stack = torch.stack(list(vectors))
    if len(set(weights)) == 1:
        return stack.mean(0)
    share = torch.tensor(weights, dtype=torch.float64, device=stack.device)
    share = (share / share.sum()).to(stack.dtype)
    return (stack * share.reshape(-1, *[1] * (stack.ndim - 1))).sum(0)
