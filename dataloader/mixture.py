"""Mixture of data sets: one sequence of crops in which each has its share; channel sets may differ.

Which data set a slot of the sequence shows is a pure function of (seed, slot): every 1,024 slots hold the same
number of each data set's crops, in an order drawn anew. So a run resumes at the exact next crop, and any number of
ranks share the same global batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Required, TypedDict, Unpack

import numpy as np
import torch

from camae.dataloader.device_planes import reading_stream, usable_everywhere
from camae.dataloader.loader import CropLoader
from camae.dataloader.manifest import Manifest
from camae.dataloader.plane_batch import PlaneBatch, ValueRange
from camae.dataloader.read_ahead import ReadAhead
from camae.errors import CamaeError

PERIOD = 1024


@dataclass(frozen=True)
class Source:
    """One data set of a mixture; `weight` is its share of the crops, relative to the others' weights."""

    name: str
    manifest: Manifest
    weight: float


class CropOptions(TypedDict, total=False):
    """Arguments of CropLoader that all data sets of a mixture share."""

    crop: Required[int]
    augment: bool
    reader: str | None
    cache_bytes: int
    crops_per_site: int
    max_bad_share: float
    min_signal: float
    threads: int
    value_range: ValueRange | None
    replicates: str | None
    device: torch.device | str


def quotas(weights: Sequence[float]) -> np.ndarray:
    """Apportionment by largest remainder: (S,) crops of each data set in every PERIOD slots.

    Raises CamaeError for a weight that is not positive or too small for a single crop in a period.
    """
    share_S = np.asarray(weights, np.float64)
    if not (np.isfinite(share_S).all() and (share_S > 0).all()):
        raise CamaeError(f"the weights of data sets must be positive numbers, not {list(weights)}")
    exact_S = share_S / share_S.sum() * PERIOD
    count_S = np.floor(exact_S).astype(np.int64)
    missing = PERIOD - count_S.sum()
    count_S[np.argsort(count_S - exact_S, kind="stable")[:missing]] += 1
    if (count_S == 0).any():
        raise CamaeError(
            f"weight {share_S.min():g} of {share_S.sum():g} is below 1 in {PERIOD} crops: raise it, or leave "
            "the data set out"
        )
    return count_S


def assign(slots_B: np.ndarray, quota_S: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Data set of every slot (B,), and the number of the slot within its data set's own sequence (B,)."""
    period_B, place_B = np.divmod(slots_B, PERIOD)
    source_B, own_B = np.empty_like(slots_B), np.empty_like(slots_B)
    for period in np.unique(period_B):
        here = period_B == period
        source_P, rank_P = _order(quota_S, seed, int(period))
        source_B[here] = source_P[place_B[here]]
        own_B[here] = period * np.asarray(quota_S)[source_B[here]] + rank_P[place_B[here]]
    return source_B, own_B


@lru_cache(maxsize=16)
def _order(quota_S: tuple[int, ...], seed: int, period: int) -> tuple[np.ndarray, np.ndarray]:
    """(PERIOD,) the data sets of one period in order, and how many of the same came before in the period."""
    labels = np.repeat(np.arange(len(quota_S)), quota_S)
    source_P = labels[np.random.default_rng((seed, period, PERIOD)).permutation(PERIOD)]
    rank_P = np.empty(PERIOD, np.int64)
    rank_P[np.argsort(source_P, kind="stable")] = np.concatenate([np.arange(n) for n in quota_S])
    return source_P, rank_P


class MixedLoader(ReadAhead):
    """Loader of global batches of one or several data sets, or of one rank's part of them.

    batch_size: crops of a global batch. Rank r of w takes crops [batch_size*r//w, batch_size*(r+1)//w) of each, so
                any number of ranks up to batch_size draws the same batches.
    loader:     class of the loader of each data set; `options` are its further arguments.
    together:   consecutive crops, from a multiple of this number on, that are of one data set (pairs of replicates).

    Within a batch the crops lie data set by data set. uint8 and uint16 data sets mix (as uint16: standardization
    is by stored gray levels); floats mix only with floats. With one data set the crops are CropLoader's own.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        workers: int = 1,
        loader: type[CropLoader] = CropLoader,
        together: int = 1,
        **options: Unpack[CropOptions],
    ) -> None:
        if not 0 <= rank < world_size <= batch_size:
            raise CamaeError(f"a global batch of {batch_size} crops cannot be shared by {world_size} ranks")
        super().__init__(start_step, workers)
        self.sources, self.batch_size, self.seed = tuple(sources), batch_size, seed
        self.rank, self.world_size, self.together = rank, world_size, together
        self._quota_S = tuple(quotas([s.weight for s in sources]).tolist())
        self.loaders = [
            loader(s.manifest, batch_size=batch_size, seed=seed + (i << 48), **options)
            for i, s in enumerate(self.sources)
        ]

    def slots_at(self, step: int) -> np.ndarray:
        """Slots (b,) of this rank's part of one global batch."""
        start = step * self.batch_size
        first, last = (self.batch_size * r // self.world_size for r in (self.rank, self.rank + 1))
        return np.arange(start + first, start + last, dtype=np.int64)

    def batch_at(self, step: int) -> PlaneBatch:
        """This rank's part of one global batch."""
        slots_B = self.slots_at(step)
        if len(self.loaders) == 1:
            return self.loaders[0].crops(slots_B)
        source_B, own_B = assign(slots_B // self.together, self._quota_S, self.seed)
        own_B = own_B * self.together + slots_B % self.together
        parts = []
        for s in np.unique(source_B):
            here = source_B == s
            parts.append((int(s), slots_B[here], self.loaders[s].crops(own_B[here])))
        return _joined(parts, self.sources)

    @property
    def bad_sites(self) -> dict[str, dict[int, str]]:
        """Unreadable sites: data set -> row -> reason, for data sets that have any."""
        pairs = zip(self.sources, self.loaders, strict=True)
        return {s.name: dict(loader.bad_sites) for s, loader in pairs if loader.bad_sites}


def _joined(parts: list[tuple[int, np.ndarray, PlaneBatch]], sources: Sequence[Source]) -> PlaneBatch:
    """One batch of several, sample after sample; (source, slots, batch) each."""
    batches = [batch for _, _, batch in parts]
    dtypes = {batch.planes_KHW.dtype for batch in batches}
    if len(dtypes) > 1 and torch.float32 in dtypes:
        kinds = ", ".join(f"{sources[s].name} is {batch.planes_KHW.dtype}" for s, _, batch in parts)
        raise CamaeError(f"floating-point and integer images cannot be trained on together: {kinds}")
    dtype = torch.uint16 if len(dtypes) > 1 else dtypes.pop()
    channels = tuple(dict.fromkeys(name for batch in batches for name in batch.channels))
    index = {name: i for i, name in enumerate(channels)}
    first_B = np.cumsum([0] + [batch.n_samples for batch in batches])
    device = batches[0].planes_KHW.device
    with reading_stream(device):
        planes_KHW = torch.empty(
            (sum(len(batch.planes_KHW) for batch in batches), *batches[0].planes_KHW.shape[1:]),
            dtype=dtype,
            device=device,
            pin_memory=device.type == "cpu" and torch.cuda.is_available(),
        )
        torch.cat([batch.planes_KHW.to(dtype) for batch in batches], out=planes_KHW)
        usable_everywhere(planes_KHW)
    return PlaneBatch(
        planes_KHW,
        torch.cat([b.sample_K + int(first) for b, first in zip(batches, first_B, strict=False)]),
        torch.cat([torch.tensor([index[n] for n in batch.channels])[batch.channel_K] for batch in batches]),
        channels,
        np.concatenate([batch.rows_B for batch in batches]),
        np.concatenate([slots for _, slots, _ in parts]),
        np.repeat([s for s, _, _ in parts], [batch.n_samples for batch in batches]),
        batches[0].value_range,
        np.concatenate([b.constant_K for b in batches]),
    )
