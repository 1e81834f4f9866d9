"""CropLoader: random crops of a screen as plane batches, a pure function of (manifest, seed, rank, step)."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from camae.dataloader.images import image_size, read_site, read_window
from camae.dataloader.manifest import Manifest
from camae.dataloader.planes import PlaneBatch
from camae.dataloader.sampling import draw, symmetric
from camae.errors import CamaeError


class CropLoader:
    """Endless random crops: every epoch shows every site once, at a random place, flipped or rotated.

    crop:           edge of the square crops in pixels.
    batch_size:     crops per batch of this rank. `world_size` ranks with batch b draw exactly the samples of
                    one process with batch b * world_size: rank r has the r-th part of each global batch.
    augment:        one of the eight flips and rotations, the same for all channels of a crop.
    start_step:     first step that iterating yields; with it a run resumes at the exact next crop.
    workers:        threads that read ahead. At most `workers + 1` batches wait in memory.
    cache_bytes:    decoded planes kept in memory, so that small screens are decoded once. 0 keeps none.
    crops_per_site: crops taken from a site at each visit (its planes are then decoded once for all of them).
    max_bad_share:  share of the sites that may be unreadable; each is replaced by the next readable one and
                    listed in `bad_sites` (row -> reason). Beyond the share the reading error is raised.

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
        backend: str | None = None,
        cache_bytes: int = 1 << 30,
        crops_per_site: int = 1,
        max_bad_share: float = 0.0,
    ) -> None:
        if not 0 <= rank < world_size:
            raise CamaeError(f"rank {rank} is not one of 0..{world_size - 1}")
        if min(crop, batch_size, workers, crops_per_site) < 1 or start_step < 0:
            raise CamaeError("crop, batch_size, workers and crops_per_site must be at least 1, start_step 0")
        self.manifest = manifest
        self.crop, self.batch_size, self.seed = crop, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.augment, self.start_step, self.workers, self.backend = augment, start_step, workers, backend
        self.crops_per_site, self.max_bad_share = crops_per_site, max_bad_share
        self.bad_sites: dict[int, str] = {}
        self.wait_seconds = 0.0
        self._cache = _SiteCache(cache_bytes)
        self._sizes: dict[int, tuple[int, int]] = {}
        self._dtype: tuple[np.dtype, int] | None = None
        self._lock = threading.Lock()

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every site was shown at least once more."""
        return -(-len(self.manifest) * self.crops_per_site // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[PlaneBatch]:
        """Batches from start_step for ever, read ahead by threads; wait_seconds adds up the consumer's waiting."""
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="camae-crops")
        ahead: deque[Future[PlaneBatch]] = deque()
        step = self.start_step
        try:
            while True:
                while len(ahead) < self.workers + 1:
                    ahead.append(pool.submit(self.batch_at, step))
                    step += 1
                began = time.perf_counter()
                batch = ahead.popleft().result()
                self.wait_seconds += time.perf_counter() - began
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def batch_at(self, step: int) -> PlaneBatch:
        """The batch of one step: a pure function of the manifest, the arguments and `step`."""
        first = (step * self.world_size + self.rank) * self.batch_size
        slots_B = np.arange(first, first + self.batch_size, dtype=np.int64)
        draws = draw(len(self.manifest), self.seed, slots_B, self.crops_per_site)
        images, names, rows = [], [], []
        for row, uniform, symmetry in zip(draws.rows_B, draws.uniform_B2, draws.symmetry_B, strict=True):
            image, channels, row = self._readable(int(row), uniform)
            self._check_dtype(image.dtype, row)
            images.append(symmetric(image, int(symmetry)) if self.augment else image)
            names.append(channels)
            rows.append(row)
        return _collated(images, names, rows)

    def _readable(self, row: int, uniform: np.ndarray) -> tuple[np.ndarray, list[str], int]:
        """The crop of `row`, or of the next row that can be read while the share of bad sites allows it."""
        while True:
            if row not in self.bad_sites:
                try:
                    return *self._crop(row, uniform), row
                except CamaeError as error:
                    self._note_bad(row, error)
            row = (row + 1) % len(self.manifest)

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

    def _crop(self, row: int, uniform: np.ndarray) -> tuple[np.ndarray, list[str]]:
        site = self._cache.get(row)
        if site is None and self._cache.open:
            site = read_site(self.manifest, row)
            self._cache.put(row, site)
        H, W = self._size(row) if site is None else site[0].shape[-2:]
        if self.crop > min(H, W):
            raise CamaeError(
                f"{self.manifest.where(row)}: a crop of {self.crop} pixels is larger than its {H}x{W}"
            )
        y, x = (int(u * (n - self.crop + 1)) for u, n in zip(uniform, (H, W), strict=True))
        if site is None:
            image, names = read_window(self.manifest, row, y, x, self.crop, backend=self.backend)
        else:
            image, names = site[0][:, y : y + self.crop, x : x + self.crop], site[1]
        return image, names

    def _size(self, row: int) -> tuple[int, int]:
        if row not in self._sizes:
            channel = self.manifest.site_channels(row)[0]
            try:
                self._sizes[row] = image_size(self.manifest.path(row, channel))
            except CamaeError as error:
                raise type(error)(f"{self.manifest.where(row, channel)}: {error}") from error
        return self._sizes[row]

    def _check_dtype(self, dtype: np.dtype, row: int) -> None:
        if self._dtype is None:
            self._dtype = (dtype, row)
        elif self._dtype[0] != dtype:
            raise CamaeError(
                f"{self.manifest.where(row)} is {dtype} but {self.manifest.where(self._dtype[1])} is "
                f"{self._dtype[0]}: one batch holds one dtype, split the manifest"
            )


def _collated(images: list[np.ndarray], names: list[list[str]], rows: list[int]) -> PlaneBatch:
    """Crops copied once, from views, into one pile of planes."""
    counts = [len(image) for image in images]
    planes_KHW = np.empty((sum(counts), *images[0].shape[1:]), images[0].dtype)
    start = 0
    for image in images:
        planes_KHW[start : start + len(image)] = image
        start += len(image)
    vocabulary = tuple(dict.fromkeys(name for site in names for name in site))
    index = {name: i for i, name in enumerate(vocabulary)}
    return PlaneBatch(
        planes_KHW=torch.from_numpy(planes_KHW),
        sample_K=torch.from_numpy(np.repeat(np.arange(len(images)), counts)),
        channel_K=torch.tensor([index[name] for site in names for name in site]),
        channels=vocabulary,
        rows_B=np.asarray(rows, np.int64),
    )


class _SiteCache:
    """Decoded sites up to a number of bytes. What is in stays: random visits gain nothing from eviction."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._sites: dict[int, tuple[np.ndarray, list[str]]] = {}
        self._lock = threading.Lock()

    @property
    def open(self) -> bool:
        """Whether another site may still fit."""
        return self._held < self._limit

    def get(self, row: int) -> tuple[np.ndarray, list[str]] | None:
        return self._sites.get(row)

    def put(self, row: int, site: tuple[np.ndarray, list[str]]) -> None:
        with self._lock:
            if row not in self._sites and self._held + site[0].nbytes <= self._limit:
                self._sites[row] = site
                self._held += site[0].nbytes
            elif row not in self._sites:
                self._limit = self._held
