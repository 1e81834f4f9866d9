"""Which tokens a batch has, and where: the packed layout shared by encoder and decoders."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from camae.dataloader.planes import PlaneBatch


@dataclass(frozen=True)
class TokenLayout:
    """The packed tokens of a batch: sample by sample, class token first, then kept patches in order.

    planes_per_sample: (B,) on the host, so that no length ever has to be read back from a device.
    n_patches: N, patches per plane.
    kept_per_sample: (B,) on the host, visible patches of each sample.
    keep_index: (sum of kept,) int64 flat indices plane * N + patch, ascending; None when all are kept.
    """

    planes_per_sample: tuple[int, ...]
    n_patches: int
    kept_per_sample: tuple[int, ...]
    keep_index: torch.Tensor | None
    device: torch.device

    @property
    def n_samples(self) -> int:
        """B."""
        return len(self.planes_per_sample)

    @property
    def n_planes(self) -> int:
        """K."""
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
        is_patch[self.class_index] = False
        return is_patch.nonzero().squeeze(1)

    @cached_property
    def kept(self) -> torch.Tensor:
        """Flat index plane * N + patch of every visible token."""
        if self.keep_index is None:
            return torch.arange(self.n_planes * self.n_patches, device=self.device)
        return self.keep_index

    @cached_property
    def masked(self) -> torch.Tensor:
        """(M,) flat index plane * N + patch of every masked token, ascending."""
        is_masked = torch.ones(self.n_planes * self.n_patches, dtype=torch.bool, device=self.device)
        is_masked[self.kept] = False
        return is_masked.nonzero().squeeze(1)

    @cached_property
    def masked_per_sample(self) -> tuple[int, ...]:
        """(B,) on the host, masked patches of each sample."""
        pairs = zip(self.planes_per_sample, self.kept_per_sample, strict=True)
        return tuple(c * self.n_patches - k for c, k in pairs)


def cumulative(lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """(len + 1,) int32 running sum from 0."""
    ends = torch.tensor((0, *lengths)).cumsum(0)
    return ends.to(torch.int32).to(device, non_blocking=True)


def segments(lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """[0]*lengths[0] + [1]*lengths[1] + ... as int64."""
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)


def planes_per_sample(batch: PlaneBatch) -> tuple[int, ...]:
    """How many planes each sample of the batch has."""
    return tuple(torch.bincount(batch.sample_K.cpu(), minlength=batch.n_samples).tolist())


def full_layout(batch: PlaneBatch, n_patches: int) -> TokenLayout:
    """Every token visible."""
    planes = planes_per_sample(batch)
    kept = tuple(c * n_patches for c in planes)
    return TokenLayout(planes, n_patches, kept, None, batch.planes_KHW.device)


def masked_layout(batch: PlaneBatch, n_patches: int, mask_ratio: float, noise: torch.Tensor) -> TokenLayout:
    """Mask over all C*N tokens of a sample jointly: the int(C*N*(1-r)) with the smallest noise stay.

    noise: (sum of C_i*N,) uniform, packed by sample.
    """
    planes = planes_per_sample(batch)
    device = batch.planes_KHW.device
    totals = tuple(c * n_patches for c in planes)
    kept = tuple(int(t * (1 - mask_ratio)) for t in totals)
    sample_L = segments(totals, device)
    by_noise = noise.to(device).argsort(stable=True)
    by_sample = by_noise[sample_L[by_noise].argsort(stable=True)]
    start = cumulative(totals, device).long()[sample_L]
    rank = torch.arange(len(sample_L), device=device) - start
    limit = torch.tensor(kept, device=device)[sample_L]
    keep_index = by_sample[rank < limit].sort().values
    return TokenLayout(planes, n_patches, kept, keep_index, device)
