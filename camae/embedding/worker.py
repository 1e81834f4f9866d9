"""Shard worker: reads sites, packs their tiles into passes, encodes them, writes shards whole.

The same worker runs on one machine, as one of several ranks, and as a Ray actor.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from camae.dataloader import dali_sites
from camae.dataloader.device_planes import indexed, reading_stream
from camae.dataloader.manifest import Manifest
from camae.dataloader.plane_batch import PlaneBatch
from camae.dataloader.read_pixels import read_site
from camae.embedding.columns import in_columns, vector_columns
from camae.embedding.encode import EncodeOptions, WindowMeans, cost, encode_batch, pack
from camae.embedding.finite import not_finite, suspect_channels
from camae.embedding.intensity import plane_intensity, with_intensity
from camae.embedding.prefetch import prefetched
from camae.embedding.store.inputs import InputStates
from camae.embedding.store.ledger import Ledger
from camae.embedding.store.shards import write_shard
from camae.embedding.validate import check_values
from camae.embedding.windows import Window, constant_windows, tile_windows
from camae.errors import CamaeError
from camae.model.interface import Model
from camae.processors import usable_cpus

T = TypeVar("T")

_PASSES_AHEAD = 2


@dataclass
class Meter:
    """Progress of a worker: sites and crops done, seconds since the start, seconds spent waiting for images."""

    sites: int = 0
    crops: int = 0
    waited: float = 0.0
    start: float = field(default_factory=time.perf_counter)

    def waiting_for(self, items: Iterator[T]) -> Iterator[T]:
        """The items; the time that each takes to come is counted."""
        start = time.perf_counter()
        for item in items:
            self.waited += time.perf_counter() - start
            yield item
            start = time.perf_counter()

    def __str__(self) -> str:
        seconds = max(time.perf_counter() - self.start, 1e-9)
        return f"{self.crops / seconds:.3g} crops/s, {self.waited / seconds:.0%} waiting for images"


@dataclass(frozen=True)
class _Tile:
    """Tile of a site; planes None where one of them has no signal (it then only keeps its place in the packing).

    The window's vector index is the site's row in the manifest. last: of its site. intensity_C7: statistics of the
    planes' stored values, where they are asked for.
    """

    shard: int
    window: Window
    last: bool
    dtype: torch.dtype
    names: list[str]
    planes_CHW: torch.Tensor | None
    intensity_C7: torch.Tensor | None = None


@dataclass(frozen=True)
class _Pass:
    """Encoder pass: its tiles, and those with signal as a batch."""

    tiles: list[_Tile]
    batch: PlaneBatch | None


class ShardWorker:
    """Embeds shards of a screen as its ledger says.

    reader: image back-end; "dali" decodes on the model's device, and the planes stay there. threads: sites read at once
    (default: up to 8, by the cores of the machine). inputs: states of the files, which are looked at anew when a site
    is read.
    """

    def __init__(
        self,
        model: Model,
        manifest: Manifest,
        folder: str | Path,
        ledger: Ledger,
        reader: str | None = None,
        threads: int | None = None,
        inputs: InputStates | None = None,
    ):
        self.model, self.manifest, self.folder, self.ledger = model, manifest, Path(folder), ledger
        self.reader = reader
        self.decodes_on = indexed(model.device if reader == "dali" else "cpu")
        self.inputs = InputStates(manifest) if inputs is None else inputs
        self.threads = threads or min(8, max(1, usable_cpus() // 2))
        self.rows = ledger.shard_rows
        self.options = EncodeOptions(ledger.pool, ledger.tiles == "interpolate", ledger.dtype, ledger.layers)

    def run(self, shards: Iterable[int], progress: Callable[[Meter], None] = lambda _: None) -> Meter:
        """Write the shards of these numbers, in order."""
        meter = Meter()
        patch = self.model.config.patch
        means, intensities = WindowMeans(self.ledger.pool, patch), WindowMeans("mean", patch)
        with (
            ThreadPoolExecutor(self.threads, "camae-sites") as readers,
            prefetched(self._passes(list(shards), readers), _PASSES_AHEAD, "camae-passes") as passes,
        ):
            for work in meter.waiting_for(passes):
                self._encode(work, means, intensities)
                meter.crops += len(work.tiles)
                meter.sites += sum(tile.last for tile in work.tiles)
                final = work.tiles[-1]
                if final.last and final.window.vector_index == self.rows[final.shard][-1]:
                    self._write(final.shard, means, intensities)
                progress(meter)
        return meter

    def _encode(self, work: _Pass, means: WindowMeans, intensities: WindowMeans) -> None:
        if work.batch is None:
            return
        tiles = [tile for tile in work.tiles if tile.planes_CHW is not None]
        vectors = encode_batch(self.model, work.batch, [None] * len(tiles), self.options)
        for tile, vector in zip(tiles, vectors, strict=True):
            means.add(tile.window, vector)
            if tile.intensity_C7 is not None:
                intensities.add(tile.window, tile.intensity_C7)

    def _write(self, shard: int, means: WindowMeans, intensities: WindowMeans) -> None:
        """The shard's table: a row per site, the mean over its tiles, how many counted."""
        rows, ledger = list(self.rows[shard]), self.ledger
        vectors, tiles = zip(*(means.pop(row) for row in rows), strict=True)
        if ledger.intensity:
            both = zip(vectors, rows, strict=True)
            vectors = tuple(with_intensity(v, intensities.pop(row)[0], ledger.pool) for v, row in both)
        channels = self.model.encoded_channels(self.manifest.site_channels(rows[0]))
        columns = vector_columns(
            ledger.pool, channels, vectors[0].numel(), layers=ledger.layers, intensity=ledger.intensity
        )
        vectors_ND = torch.stack([in_columns(vector, ledger) for vector in vectors]).cpu().numpy()
        finite_N = np.isfinite(vectors_ND).all(1)
        if not finite_N.all():
            raise self._not_finite(rows[int(finite_N.argmin())])
        metadata = self.manifest.table.iloc[rows].filter(regex="^Metadata_")
        inputs = self.inputs.of_rows(rows)
        write_shard(self.folder, shard, ledger, metadata, vectors_ND, columns, list(tiles), inputs)

    def _not_finite(self, row: int) -> CamaeError:
        """The error for a site whose vector has NaN or infinity; the site is read again to name the channel."""
        ledger, config = self.ledger, self.model.config
        image, names = read_site(self.manifest, row, reader=self.reader)
        planes_CHW = torch.from_numpy(image)
        windows = tile_windows(
            Window(0, row, 0, 0, *image.shape[1:]), config.crop, config.patch, ledger.tiles, ledger.overlap
        )
        suspects = suspect_channels(
            self.model, planes_CHW, names, windows, self.options, ledger.tokens_per_pass, ledger.value_range
        )
        return not_finite(self.model, self.manifest.where(row), names, suspects)

    def _passes(self, shards: list[int], readers: ThreadPoolExecutor) -> Iterator[_Pass]:
        """Tiles packed by tokens. No pass crosses a shard, and tiles without signal keep their place."""
        patch = self.model.config.patch

        def tokens(tile: _Tile) -> tuple[int, int]:
            n_channels = len(self.model.encoded_channels(tile.names))
            return cost(n_channels, tile.window.height, tile.window.width, patch)

        for tiles in pack(
            self._tiles(shards, readers),
            lambda tile: (tile.shard, tile.dtype, tile.window.height, tile.window.width),
            tokens,
            self.ledger.tokens_per_pass,
        ):
            yield _Pass(tiles, self._batch(tiles))

    def _batch(self, tiles: list[_Tile]) -> PlaneBatch | None:
        """The tiles with signal; on a GPU in page-locked memory, so that their copy to it runs beside its work."""
        seen = [(tile.planes_CHW, tile.names) for tile in tiles if tile.planes_CHW is not None]
        if not seen:
            return None
        planes, names = zip(*seen, strict=True)
        batch = PlaneBatch.from_images(planes, names, value_range=self.ledger.value_range)
        if self.model.device.type != "cuda" or batch.planes_KHW.is_cuda:
            return batch
        return replace(batch, planes_KHW=batch.planes_KHW.pin_memory())

    def _tiles(self, shards: list[int], readers: ThreadPoolExecutor) -> Iterator[_Tile]:
        """Tiles in the order of the sites, of which up to twice as many as `threads` are read ahead."""
        waiting: deque[Future[list[_Tile]]] = deque()
        for shard in shards:
            for row in self.rows[shard]:
                waiting.append(readers.submit(self._site_beside_passes, shard, row))
                if len(waiting) > 2 * self.threads:
                    yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()

    def _site_beside_passes(self, shard: int, row: int) -> list[_Tile]:
        with reading_stream(self.decodes_on):
            return self._site(shard, row)

    def _planes(self, row: int) -> tuple[torch.Tensor, list[str]]:
        """The planes (C, H, W) of a site, none of them constant, on the device that decodes, and their channels."""
        if self.reader == "dali":
            return dali_sites.read_site(self.manifest, row, self.decodes_on, check_constant=True)
        image, names = read_site(self.manifest, row, check_constant=True, reader=self.reader)
        return torch.from_numpy(image), names

    def _site(self, shard: int, row: int) -> list[_Tile]:
        """The tiles of a site; at least one has signal in every plane."""
        before = self.inputs.look(row)
        planes_CHW, names = self._planes(row)
        self.inputs.check_unchanged(row, before)
        config, ledger = self.model.config, self.ledger
        whole = Window(0, row, 0, 0, *planes_CHW.shape[1:])
        try:
            check_values(planes_CHW, "the site", names, config.standardization, ledger.value_range)
            windows = tile_windows(whole, config.crop, config.patch, ledger.tiles, ledger.overlap)
        except CamaeError as error:
            raise CamaeError(f"{self.manifest.where(row)}: {error}") from None
        reasons = constant_windows(planes_CHW, windows, names, ledger.value_range, self.manifest.where(row))
        tiles = []
        for window, reason in zip(windows, reasons, strict=True):
            seen = window.cut(planes_CHW) if reason is None else None
            statistics = plane_intensity(seen) if seen is not None and ledger.intensity else None
            last = window is windows[-1]
            tiles.append(_Tile(shard, window, last, planes_CHW.dtype, names, seen, statistics))
        return tiles
