"""Token layout: the packed tokens of a batch, and which patches are visible, masked and decoded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from camae.dataloader.plane_batch import PlaneBatch
from camae.errors import CamaeError


@dataclass(frozen=True)
class Part:
    """Subset of the patches of a batch.

    index_M: (M,) int64 flat indices plane * N + patch, ascending (so sample by sample).
    per_sample: (B,) on the host, how many of each sample.
    """

    index_M: torch.Tensor
    per_sample: tuple[int, ...]


@dataclass(frozen=True)
class TokenLayout:
    """Packed layout of a batch's tokens: sample by sample, class token first, then kept patches in order.

    planes_per_sample: (B,) on the host, so that no length ever has to be read back from a device.
    n_patches: N, patches per plane.
    kept_per_sample: (B,) on the host, visible patches of each sample.
    keep_index: (sum of kept,) int64 flat indices plane * N + patch, ascending; None when all are kept.
    decode: the part of the masked patches that is decoded; None when all are.
    """

    planes_per_sample: tuple[int, ...]
    n_patches: int
    kept_per_sample: tuple[int, ...]
    keep_index: torch.Tensor | None
    device: torch.device
    decode: Part | None = None

    @property
    def n_samples(self) -> int:
        """B, samples of the batch."""
        return len(self.planes_per_sample)

    @property
    def n_planes(self) -> int:
        """K, planes of the batch."""
        return sum(self.planes_per_sample)

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Encoder tokens of each sample, the class token included."""
        return tuple(k + 1 for k in self.kept_per_sample)

    @cached_property
    def cu_seqlens(self) -> torch.Tensor:
        """(B + 1,) int32: where each sample's encoder tokens begin."""
        return cumulative(self.lengths, self.device)

    @cached_property
    def sample_T(self) -> torch.Tensor:
        """(T,) the sample each encoder token belongs to."""
        return segments(self.lengths, self.device)

    @cached_property
    def class_index(self) -> torch.Tensor:
        """(B,) the row of each sample's class token."""
        return self.cu_seqlens[:-1].long()

    @cached_property
    def patch_rows(self) -> torch.Tensor:
        """Rows of tokens_TD that are patches (all but the class tokens)."""
        is_patch = torch.ones(sum(self.lengths), dtype=torch.bool, device=self.device)
        is_patch.index_fill_(0, self.class_index, False)  # x[index] = value copies the value from the host
        return indices(is_patch, sum(self.kept_per_sample))

    @cached_property
    def kept(self) -> torch.Tensor:
        """(V,) flat index plane * N + patch of every visible token, ascending."""
        if self.keep_index is None:
            return torch.arange(self.n_planes * self.n_patches, device=self.device)
        return self.keep_index

    @cached_property
    def masked(self) -> torch.Tensor:
        """(M,) flat index plane * N + patch of every masked token, ascending."""
        is_masked = torch.ones(self.n_planes * self.n_patches, dtype=torch.bool, device=self.device)
        is_masked.index_fill_(0, self.kept, False)
        return indices(is_masked, sum(self.masked_per_sample))

    @cached_property
    def masked_per_sample(self) -> tuple[int, ...]:
        """(B,) on the host, masked patches of each sample."""
        pairs = zip(self.planes_per_sample, self.kept_per_sample, strict=True)
        return tuple(c * self.n_patches - k for c, k in pairs)

    @cached_property
    def totals(self) -> tuple[int, ...]:
        """(B,) on the host, patches of each sample, visible and masked."""
        return tuple(c * self.n_patches for c in self.planes_per_sample)

    @cached_property
    def all_patches(self) -> Part:
        """All patches, visible and masked."""
        return Part(torch.arange(self.n_planes * self.n_patches, device=self.device), self.totals)

    @cached_property
    def decoded(self) -> Part:
        """The masked patches that are decoded: all, or the random part chosen with the mask."""
        return self.decode or Part(self.masked, self.masked_per_sample)


def indices(is_true_L: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the true values of a mask, (count,) int64; with `count` given no length is read from a device."""
    return is_true_L.nonzero_static(size=count).squeeze(1)


def cumulative(lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Cumulative sequence lengths, (len + 1,) int32, from 0."""
    ends = torch.tensor((0, *lengths)).cumsum(0)
    return ends.to(torch.int32).to(device, non_blocking=True)


def segments(lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Segment number of every row, int64: [0]*lengths[0] + [1]*lengths[1] + ..."""
    # Repeated on the device: only the lengths travel, and with their sum given nothing is read back.
    return torch.arange(len(lengths), device=device).repeat_interleave(
        _on(lengths, device), output_size=sum(lengths)
    )


def full_layout(batch: PlaneBatch, n_patches: int) -> TokenLayout:
    """Layout of a batch with every token visible."""
    planes = batch.planes_per_sample
    kept = tuple(c * n_patches for c in planes)
    return TokenLayout(planes, n_patches, kept, None, batch.planes_KHW.device)


def kept_count(total: int, mask_ratio: float, keep_multiple: int = 1) -> int:
    """Number of visible patches of a sample of `total`: int(total * (1 - r)), or near it for full tiles.

    With keep_multiple above 1 the encoder's tokens, class token included, are the nearest multiple of it (the
    rows of an attention tile); a sample with fewer tokens than that, or without room for them, keeps its count.
    """
    kept = int(total * (1 - mask_ratio))
    tokens = round((kept + 1) / keep_multiple) * keep_multiple
    return tokens - 1 if kept + 1 >= keep_multiple and tokens - 1 <= total else kept


def masked_layout(
    batch: PlaneBatch,
    n_patches: int,
    mask_ratio: float,
    noise: torch.Tensor,
    part: float = 1.0,
    keep_multiple: int = 1,
    hidden_K: np.ndarray | None = None,
) -> TokenLayout:
    """Random mask over all C*N tokens of a sample jointly: the int(C*N*(1-r)) with the smallest noise stay.

    noise: (sum of C_i*N,) uniform, packed by sample.
    part: share of each sample's masked patches to decode, at least one: those with the smallest noise, a
        uniformly random part, because the order of the noise above its threshold is independent of the mask.
    keep_multiple: see `kept_count`.
    hidden_K: (K,) bool on the host, planes that are masked whole. Their patches count among the masked ones, so as
        many patches stay visible as without them, or all of the other planes where those have fewer.
    Raises CamaeError for a sample in which all planes are hidden.
    """
    planes = batch.planes_per_sample
    device = batch.planes_KHW.device
    totals = tuple(c * n_patches for c in planes)
    kept = tuple(kept_count(t, mask_ratio, keep_multiple) for t in totals)
    sample_L = group_L = segments(totals, device)
    if hidden_K is not None:
        kept = _kept_of_others(kept, planes, n_patches, hidden_K)
        hidden_K1 = torch.from_numpy(hidden_K).to(device, non_blocking=True)[:, None]
        group_L = (
            2 * sample_L + hidden_K1.expand(-1, n_patches).flatten()
        )  # within a sample, hidden planes come after all others
    noise = noise.to(device)
    rank = _ranks(noise, group_L, sample_L, totals)
    limit = _on(kept, device)[sample_L]
    keep_index = indices(rank < limit, sum(kept))
    decode = None
    if part < 1:
        counts = tuple(min(t - k, max(1, round(part * (t - k)))) for t, k in zip(totals, kept, strict=True))
        if hidden_K is not None:  # visible planes' patches rank first: another order, independent of the mask
            masked_L = (rank >= limit).long()
            rank = _ranks(_scrambled(noise), 2 * sample_L + masked_L, sample_L, totals)
        chosen = (rank >= limit) & (rank < limit + _on(counts, device)[sample_L])
        decode = Part(indices(chosen, sum(counts)), counts)
    return TokenLayout(planes, n_patches, kept, keep_index, device, decode)


def _ranks(
    noise: torch.Tensor, group_L: torch.Tensor, sample_L: torch.Tensor, totals: tuple[int, ...]
) -> torch.Tensor:
    """(L,) place of each patch among its sample's, by group and then by noise."""
    by_noise = noise.argsort(stable=True)
    by_group = by_noise[group_L[by_noise].argsort(stable=True)]
    start = cumulative(totals, noise.device).long()[sample_L]
    rank = torch.empty_like(sample_L)
    rank[by_group] = torch.arange(len(sample_L), device=noise.device) - start
    return rank


def _kept_of_others(
    kept: tuple[int, ...], planes: tuple[int, ...], n_patches: int, hidden_K: np.ndarray
) -> tuple[int, ...]:
    """(B,) visible patches of each sample, at most those of the planes that are not hidden."""
    first = np.cumsum((0, *planes[:-1]))
    others = [c - int(h) for c, h in zip(planes, np.add.reduceat(hidden_K.astype(int), first), strict=True)]
    if 0 in others:
        raise CamaeError(
            f"all {planes[others.index(0)]} planes of sample {others.index(0)} are hidden; leave one to predict from"
        )
    return tuple(min(k, o * n_patches) for k, o in zip(kept, others, strict=True))


def _scrambled(noise: torch.Tensor) -> torch.Tensor:
    """Numbers that order patches independently of the noise they are made of: MurmurHash3's finalizer of its bits."""
    x = noise.to(torch.float32).view(torch.int32).long() & 0xFFFFFFFF
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 16)


def _on(values: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(values).to(device, non_blocking=True)
