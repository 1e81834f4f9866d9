"""Pooling of encoder tokens to embedding vectors (paper, Figure 4 right)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from camae.errors import CamaeError
from camae.model.token_layout import TokenLayout

POOLS = ("mean", "cls", "per_channel", "moments", "moments_per_channel", "patch", "patch_mean")
PER_CHANNEL = ("per_channel", "moments_per_channel")  # one vector for each channel
MOMENTS = ("moments", "moments_per_channel")  # means, then standard deviations
MAPS = ("patch", "patch_mean")  # one vector for each patch


def check_pool(pool: str) -> None:
    """Raise CamaeError for an unknown pooling."""
    if pool not in POOLS:
        raise CamaeError(f"pool {pool!r} is not one of {', '.join(POOLS)}")


def pool_tokens(tokens_TD: torch.Tensor, layout: TokenLayout, pool: str) -> list[torch.Tensor]:
    """Pool tokens to one float32 vector per sample.

    Returns (D,) for "mean" (over visible patch tokens) and "cls", (2D,) for "moments" (the mean and then the
    population standard deviation over visible patch tokens), (C, D) and (C, 2D) for "per_channel" and
    "moments_per_channel", (C, S, D) for "patch" and (S, D), the mean over channels, for "patch_mean". All but the first
    three need a layout in which all planes of a sample show the same S patches.
    """
    if pool == "cls":
        return list(tokens_TD[layout.class_index].float().unbind(0))
    samples = _patches(tokens_TD, layout)
    if pool in PER_CHANNEL or pool in MAPS:
        planes = layout.planes_per_sample
        split = [p_SD.unflatten(0, (c, -1)) for p_SD, c in zip(samples, planes, strict=True)]
        if pool in MAPS:
            return [p_CSD.mean(0) if pool == "patch_mean" else p_CSD for p_CSD in split]
        return [moments(p_CSD) if pool in MOMENTS else p_CSD.mean(1) for p_CSD in split]
    reduce = moments if pool in MOMENTS else _mean
    if isinstance(samples, torch.Tensor):
        return list(reduce(samples).unbind(0))
    return [reduce(patches_SD) for patches_SD in samples]


def _mean(patches_SD: torch.Tensor) -> torch.Tensor:
    return patches_SD.mean(-2)


def moments(patches_SD: torch.Tensor) -> torch.Tensor:
    """Mean and population standard deviation over patches, side by side: (..., S, D) to (..., 2D)."""
    variance_D, mean_D = torch.var_mean(patches_SD, -2, correction=0)
    return torch.cat([mean_D, variance_D.sqrt()], -1)


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


def combine(vectors: Sequence[torch.Tensor], weights: Sequence[int], pool: str) -> torch.Tensor:
    """The vector of all tokens from the vectors of parts of them, weighted by how many tokens each part has.

    vectors: of equal shape, as `pool_tokens` returns them, also with axes before. Means are averaged; moments of
    parts become those of the whole: the variance within parts plus that of their means. One vector comes back as it is.
    """
    if pool not in MOMENTS or len(vectors) == 1:
        return average(vectors, weights)
    means, deviations = zip(*(vector.double().chunk(2, -1) for vector in vectors), strict=True)
    mean = average(means, weights)
    variance = average([d**2 + (m - mean) ** 2 for m, d in zip(means, deviations, strict=True)], weights)
    return torch.cat([mean, variance.sqrt()], -1).to(vectors[0].dtype)
