"""Site reader: windows of many sites, from memory, by the native reader in one call, or plane by plane."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from camae.dataloader.backends import native
from camae.dataloader.backends.addresses import is_tiff, refuse_remote
from camae.dataloader.illumination import corrected
from camae.dataloader.manifest import ILLUMINATION, Manifest
from camae.dataloader.read_pixels import PlaneKind, checked_reader, plane_kind, read_site
from camae.dataloader.sampling import symmetric
from camae.errors import CamaeError


@dataclass(frozen=True)
class Site:
    """One site of a manifest, ready to be read.

    row:          its manifest row.
    addresses:    of its planes, as `file.tif#page`.
    illumination: path of each plane's illumination function or None; () where no plane has one.
    channels:     of its planes, as indices into the manifest's channels.
    kind:         size and dtype of its first plane.
    by_window:    a back-end reads windows of its planes without decoding them whole.
    """

    row: int
    addresses: tuple[str, ...]
    illumination: tuple[str | None, ...]
    channels: tuple[int, ...]
    kind: PlaneKind
    by_window: bool


@dataclass(frozen=True)
class Windows:
    """B square windows: their sites, top left corners in pixels, and symmetries (see sampling.symmetric)."""

    sites: Sequence[Site]
    y_B: np.ndarray
    x_B: np.ndarray
    symmetry_B: np.ndarray


class SiteReader:
    """Reader of windows of a manifest's sites, with a cache of decoded sites.

    reader:      image back-end, see `read_crops`.
    cache_bytes: size of the cache.
    threads:     of the native reader, 0 for every core.
    """

    def __init__(self, manifest: Manifest, reader: str | None, cache_bytes: int, threads: int) -> None:
        self.manifest, self.reader, self.threads = manifest, checked_reader(reader), threads
        self._sites: dict[int, Site] = {}
        self._index = {name: i for i, name in enumerate(manifest.channels)}
        self._corrected = any(str(c).startswith(ILLUMINATION) for c in manifest.table.columns)
        self._cache = _SiteCache(cache_bytes)

    def site(self, row: int) -> Site:
        """Site of a manifest row. Raises CamaeError naming row, file and channel when it cannot be opened."""
        if row not in self._sites:
            names = self.manifest.site_channels(row)
            addresses = tuple(self.manifest.path(row, name) for name in names)
            try:
                for address in addresses:
                    refuse_remote(address)
                kind = plane_kind(addresses[0], self.reader)
            except CamaeError as error:
                raise type(error)(f"{self.manifest.where(row, names[0])}: {error}") from error
            self._sites[row] = Site(
                row,
                addresses,
                self._illumination(row, names),
                tuple(self._index[name] for name in names),
                kind,
                self.reader != "tifffile" and all(map(is_tiff, addresses)),
            )
        return self._sites[row]

    def _illumination(self, row: int, names: Sequence[str]) -> tuple[str | None, ...]:
        if not self._corrected:
            return ()
        paths = tuple(self.manifest.illumination_path(row, name) for name in names)
        return paths if any(paths) else ()

    def planes(
        self, windows: Windows, size: int, pinned: bool = False
    ) -> tuple[torch.Tensor, dict[int, CamaeError]]:
        """Planes (K, size, size) of all windows in order, and sample -> error of those that failed.

        pinned: in page-locked memory.
        """
        shape = (sum([len(s.addresses) for s in windows.sites]), size, size)
        dtype = getattr(torch, windows.sites[0].kind.dtype.name)
        planes_KHW = torch.empty(shape, dtype=dtype, pin_memory=pinned)
        return planes_KHW, self._fill(windows, planes_KHW.numpy())

    def _fill(self, windows: Windows, planes_KHW: np.ndarray) -> dict[int, CamaeError]:
        """Read the planes of all windows, in order, into planes_KHW; returns sample -> error of those that failed."""
        errors: dict[int, CamaeError] = {}
        first_B = np.cumsum([0] + [len(s.addresses) for s in windows.sites])
        visits = Counter([s.row for s in windows.sites])
        cache_is_full = not self._cache.open
        direct: list[int] = []
        whole: dict[int, np.ndarray] = {}
        for b, site in enumerate(windows.sites):
            image = self._cache.get(site.row) if site.row not in whole else whole[site.row]
            # A whole decode pays when the windows together would decode as much.
            cheaper = cache_is_full and visits[site.row] * site.kind.decoded_share < 1
            if image is None and site.by_window and cheaper:
                direct.append(b)
                continue
            try:
                if image is None:
                    image = whole[site.row] = read_site(self.manifest, site.row, reader=self.reader)[0]
                    self._cache.put(site.row, image)
                _copy_turned(image, windows, b, planes_KHW[first_B[b] : first_B[b + 1]])
            except CamaeError as error:
                errors[b] = error
        if direct:
            errors |= self._fill_direct(windows, direct, first_B, planes_KHW)
        return errors

    def _fill_direct(
        self, windows: Windows, direct: list[int], first_B: np.ndarray, planes_KHW: np.ndarray
    ) -> dict[int, CamaeError]:
        """One call of the native reader for all windows in `direct`, then their illumination functions."""
        counts = np.array([len(windows.sites[b].addresses) for b in direct])
        chosen = planes_KHW
        if len(direct) < len(windows.sites):
            chosen = np.empty((counts.sum(), *planes_KHW.shape[1:]), planes_KHW.dtype)
        addresses = [a for b in direct for a in windows.sites[b].addresses]
        owner = np.repeat(direct, counts)
        y, x, turns = windows.y_B[owner], windows.x_B[owner], windows.symmetry_B[owner]
        failures = native.read_windows(addresses, y, x, chosen, turns, threads=self.threads)
        starts = np.cumsum(counts) - counts
        errors: dict[int, CamaeError] = {}
        for job, error in failures:
            b = int(owner[job])
            site = windows.sites[b]
            channel = self.manifest.channels[site.channels[job - starts[direct.index(b)]]]
            errors.setdefault(b, type(error)(f"{self.manifest.where(site.row, channel)}: {error}"))
        if chosen is planes_KHW and not self._corrected:
            return errors
        for i, b in enumerate(direct):
            planes = chosen[starts[i] : starts[i] + counts[i]]
            for c, path in enumerate(windows.sites[b].illumination):
                if path is not None and b not in errors:
                    corner = int(windows.y_B[b]), int(windows.x_B[b])
                    planes[c] = corrected(planes[c], path, *corner, int(windows.symmetry_B[b]))
            if chosen is not planes_KHW:
                planes_KHW[first_B[b] : first_B[b + 1]] = planes
        return errors


def _copy_turned(image: np.ndarray, windows: Windows, b: int, out: np.ndarray) -> None:
    y, x, symmetry = int(windows.y_B[b]), int(windows.x_B[b]), int(windows.symmetry_B[b])
    if image.dtype.kind == "u":
        native.copy_window(image, y, x, symmetry, out)
    else:
        size = out.shape[-1]
        out[:] = symmetric(image[:, y : y + size, x : x + size], symmetry)


class _SiteCache:
    """Cache of decoded sites up to a number of bytes, without eviction: random visits would gain nothing from it."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._sites: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    @property
    def open(self) -> bool:
        """True while another site may still fit."""
        return self._held < self._limit

    def get(self, row: int) -> np.ndarray | None:
        return self._sites.get(row)

    def put(self, row: int, image: np.ndarray) -> None:
        with self._lock:
            if row not in self._sites and self._held + image.nbytes <= self._limit:
                self._sites[row] = image
                self._held += image.nbytes
            elif row not in self._sites:
                self._limit = self._held
