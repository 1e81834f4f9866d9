"""Crop loader: random crops of a screen as plane batches, a pure function of (manifest, seed, rank, step)."""

from __future__ import annotations

import threading
from functools import lru_cache

import numpy as np
import torch

from camae.dataloader.backends import native
from camae.dataloader.dali_sites import DaliSiteReader
from camae.dataloader.device_planes import constant_planes
from camae.dataloader.manifest import Manifest
from camae.dataloader.plane_batch import PlaneBatch, ValueRange
from camae.dataloader.read_ahead import ReadAhead
from camae.dataloader.read_pixels import checked_reader
from camae.dataloader.replicates import Replicates
from camae.dataloader.sampling import Draws, draw, draw_pairs
from camae.dataloader.site_reader import Site, SiteReader, Windows
from camae.errors import CamaeError

_ATTEMPTS = 4  # places tried per crop when min_signal is set


class CropLoader(ReadAhead):
    """Loader of random crops without end: every epoch shows every site once, at a random place, flipped or rotated.

    crop:           edge of the square crops in pixels.
    batch_size:     crops per batch of this rank. `world_size` ranks with batch b draw exactly the samples of
                    one process with batch b * world_size: rank r has the r-th part of each global batch.
    augment:        one of the eight flips and rotations, the same for all channels of a crop.
    start_step:     first step that iterating yields; with it a run resumes at the exact next crop.
    workers:        batches read at once. At most `workers + 1` batches wait in memory.
    reader:         image back-end for TIFFs: "native" (default), "tifffile" or "dali".
    cache_bytes:    decoded sites kept in memory, so that small screens are decoded once. 0 keeps none.
    crops_per_site: crops taken from a site at each visit (its planes are then decoded once for all of them).
    max_bad_share:  share of the sites that may be unreadable; each is replaced by the next readable one and
                    listed in `bad_sites` (row -> reason). Beyond the share the reading error is raised.
    min_signal:     crops whose signal stays below this are drawn again, up to 3 times, and the strongest is
                    taken. Signal: the largest over the channels of standard deviation / mean of the stored
                    values; empty background has about 0.05 to 0.1, cells above 0.2.
    threads:        of the native reader within a batch, 0 for every core.
    value_range:    lowest and highest possible value of the planes, which every batch carries.
    replicates:     column of perturbations: slots 2p and 2p + 1 then show replicates of one, in two wells, of two
                    plates where there are. Every epoch shows every site once as the first of a pair; a site without a
                    replicate is shown twice, at two places.
    device:         for reader="dali": a CUDA device decodes, crops, flips and rotates, and the planes stay on it.
                    Other readers give planes on the host, page-locked where there is CUDA.

    Sites may have different channel sets; all must have one dtype. A CamaeError names row, file and channel.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        crop: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        augment: bool = True,
        start_step: int = 0,
        workers: int = 1,
        reader: str | None = None,
        cache_bytes: int = 1 << 30,
        crops_per_site: int = 1,
        max_bad_share: float = 0.0,
        min_signal: float = 0.0,
        threads: int = 0,
        value_range: ValueRange | None = None,
        replicates: str | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 0 <= rank < world_size:
            raise CamaeError(f"rank {rank} is not one of 0..{world_size - 1}")
        if min(crop, batch_size, workers, crops_per_site) < 1 or start_step < 0:
            raise CamaeError("crop, batch_size, workers and crops_per_site must be at least 1, start_step 0")
        self.manifest = manifest
        self.crop, self.batch_size, self.seed = crop, batch_size, seed
        self.rank, self.world_size = rank, world_size
        super().__init__(start_step, workers)
        self.augment, self.value_range = augment, value_range
        self.crops_per_site, self.max_bad_share, self.min_signal = crops_per_site, max_bad_share, min_signal
        self.bad_sites: dict[int, str] = {}
        self.replicates = None if replicates is None else Replicates(manifest, replicates)
        self._site_reader = _site_reader(manifest, reader, cache_bytes, threads, device)
        # Reading threads look for planes without signal, so that training does not have to fetch pixels for that.
        self._looks = self._site_reader.reader == "dali"
        self._ready: dict[int, Site] = {}
        self._dtype: tuple[np.dtype, int] | None = None
        self._lock = threading.Lock()
        self._pinned = torch.cuda.is_available()

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps in which every site is shown at least once."""
        return -(-len(self.manifest) * self.crops_per_site // (self.batch_size * self.world_size))

    def batch_at(self, step: int) -> PlaneBatch:
        """Batch of one step: a pure function of the manifest, the arguments and `step`."""
        first = (step * self.world_size + self.rank) * self.batch_size
        return self.crops(np.arange(first, first + self.batch_size, dtype=np.int64))

    def crops(self, slots_B: np.ndarray) -> PlaneBatch:
        """Batch of the given slots (B,) of the sequence of crops, in their order."""
        sites, planes_KHW = self._filled(slots_B)
        sample_K, channel_K, present = _layout(tuple([site.channels for site in sites]))
        return PlaneBatch(
            planes_KHW=planes_KHW,
            sample_K=sample_K,
            channel_K=channel_K,
            channels=tuple([self.manifest.channels[c] for c in present]),
            rows_B=np.array([site.row for site in sites], np.int64),
            slots_B=slots_B,
            value_range=self.value_range,
            constant_K=constant_planes(planes_KHW) if self._looks else np.empty(0, bool),
        )

    def _filled(self, slots_B: np.ndarray) -> tuple[list[Site], torch.Tensor]:
        """Sites and planes of the slots; bad sites are noted and replaced until every window was read."""
        draws = self._draws(slots_B, attempt=0)
        while True:
            sites = [self._ready.get(row) or self._readable(row) for row in draws.rows_B.tolist()]
            planes_KHW, errors = self._site_reader.planes(
                self._windows(sites, draws), self.crop, self._pinned
            )
            for b, error in errors.items():
                self._note_bad(sites[b].row, error)
            if not errors:
                break
        if self.min_signal > 0:
            self._strengthen(slots_B, sites, planes_KHW)
        return sites, planes_KHW

    def _draws(self, slots_B: np.ndarray, attempt: int) -> Draws:
        if self.replicates is None:
            return draw(len(self.manifest), self.seed, slots_B, self.crops_per_site, attempt)
        return draw_pairs(
            len(self.manifest), self.seed, slots_B, self.replicates.partners, self.crops_per_site, attempt
        )

    def _windows(self, sites: list[Site], draws: Draws) -> Windows:
        room_B2 = np.array([site.kind[:2] for site in sites]) - self.crop + 1
        y_B, x_B = (draws.uniform_B2 * room_B2).astype(np.int64).T
        symmetry_B = draws.symmetry_B if self.augment else np.zeros_like(draws.symmetry_B)
        return Windows(sites, y_B, x_B, symmetry_B)

    def _readable(self, row: int) -> Site:
        """The site of `row`, or of the next row that can be opened while the share of bad sites allows it."""
        while True:
            if row not in self.bad_sites:
                try:
                    site = self._site_reader.site(row)
                except CamaeError as error:
                    self._note_bad(row, error)
                else:
                    self._check(site)
                    self._ready[row] = site
                    return site
            row = (row + 1) % len(self.manifest)

    def _check(self, site: Site) -> None:
        height, width, dtype, _ = site.kind
        if self.crop > min(height, width):
            raise CamaeError(
                f"{self.manifest.where(site.row)}: a crop of {self.crop} pixels is larger than its "
                f"{height}x{width}"
            )
        if self._dtype is None:
            self._dtype = (dtype, site.row)
        elif self._dtype[0] != dtype:
            raise CamaeError(
                f"{self.manifest.where(site.row)} is {dtype} but {self.manifest.where(self._dtype[1])} is "
                f"{self._dtype[0]}: one batch holds one dtype, split the manifest"
            )

    def _note_bad(self, row: int, error: CamaeError) -> None:
        with self._lock:
            if len(self.bad_sites.keys() | {row}) > self.max_bad_share * len(self.manifest):
                if not self.bad_sites:
                    raise error
                raise CamaeError(
                    f"more than {self.max_bad_share:.1%} of the {len(self.manifest)} sites cannot be read: "
                    f"{error}"
                ) from error
            self.bad_sites[row] = str(error)
            self._ready.pop(row, None)

    def _strengthen(self, slots_B: np.ndarray, sites: list[Site], planes_KHW: torch.Tensor) -> None:
        """Replace crops below min_signal by the strongest of a few other places in the same site."""
        counts = np.array([len(site.addresses) for site in sites])
        starts = np.cumsum(counts) - counts
        signal_B = _signal(planes_KHW, starts)
        for attempt in range(1, _ATTEMPTS):
            weak = np.flatnonzero(signal_B < self.min_signal)
            if not len(weak):
                return
            chosen = [sites[b] for b in weak]
            windows = self._windows(chosen, self._draws(slots_B[weak], attempt))
            tried, errors = self._site_reader.planes(windows, self.crop)
            for error in errors.values():
                raise error
            offsets = np.cumsum(counts[weak]) - counts[weak]
            for b, offset, signal in zip(weak, offsets, _signal(tried, offsets), strict=True):
                if signal > signal_B[b]:
                    planes_KHW[starts[b] : starts[b] + counts[b]] = tried[offset : offset + counts[b]]
                    signal_B[b] = signal


def _site_reader(
    manifest: Manifest, reader: str | None, cache_bytes: int, threads: int, device: torch.device | str
) -> SiteReader:
    if checked_reader(reader) != "dali":
        return SiteReader(manifest, reader, cache_bytes, threads)
    return DaliSiteReader(manifest, device)


@lru_cache(maxsize=16)
def _layout(channels_B: tuple[tuple[int, ...], ...]) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """sample_K, channel_K and the numbers channel_K points into, for samples of these channels.

    Only channels that occur are pointed into: a batch of three-channel sites does not claim a fourth.
    """
    sample_K = np.repeat(np.arange(len(channels_B)), [len(channels) for channels in channels_B])
    channel_K = np.concatenate(channels_B)
    occurs = np.bincount(channel_K) > 0
    index_K = (np.cumsum(occurs) - 1)[channel_K]
    return torch.from_numpy(sample_K), torch.from_numpy(index_K), np.flatnonzero(occurs).tolist()


def _signal(planes_KHW: torch.Tensor, starts: np.ndarray) -> np.ndarray:
    """(B,) the largest standard deviation / mean over each sample's planes; those on a device are copied for it."""
    mean_K, variance_K = native.plane_moments(planes_KHW.cpu().numpy()).T
    return np.maximum.reduceat(np.sqrt(variance_K) / np.maximum(np.abs(mean_K), 1e-12), starts)
