"""The worker of a screen: reads sites, packs their tiles into passes, encodes them, writes shards whole.

The same worker runs on one machine, as one of several ranks, and as a Ray actor.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from camae.dataloader.images import read_site
from camae.dataloader.manifest import Manifest
from camae.dataloader.plane_batch import PlaneBatch
from camae.embedding.encode import Reading, cost, encode_batch, pack
from camae.embedding.ledger import shard_path, shard_rows
from camae.embedding.validate import check_dtype, check_values, constant_planes
from camae.embedding.windows import tile_corners
from camae.embedding_table import make_table, write_table
from camae.errors import CamaeError

_PASSES_AHEAD = 2


@dataclass
class Meter:
    """What a run has done: sites and crops, seconds since the start, seconds spent waiting for images."""

    sites: int = 0
    crops: int = 0
    waited: float = 0.0
    start: float = field(default_factory=time.perf_counter)

    def __str__(self) -> str:
        seconds = max(time.perf_counter() - self.start, 1e-9)
        return f"{self.crops / seconds:.3g} crops/s, {self.waited / seconds:.0%} waiting for images"


@dataclass(frozen=True)
class _Tile:
    """A tile of a site; planes None where one of them has no signal (it then only keeps its place in the packing)."""

    shard: int
    row: int
    last: bool
    kind: tuple
    names: list[str]
    planes_CHW: torch.Tensor | None


@dataclass(frozen=True)
class _Pass:
    tiles: list[_Tile]
    batch: PlaneBatch | None


class ShardWorker:
    """Embeds shards of a screen as its ledger says.

    reader: image back-end. threads: sites read at once (default: up to 8, by the cores of the machine).
    """

    def __init__(
        self,
        model: Any,
        manifest: Manifest,
        folder: str | Path,
        ledger: dict[str, Any],
        reader: str | None = None,
        threads: int | None = None,
    ):
        self.model, self.manifest, self.folder, self.ledger = model, manifest, Path(folder), ledger
        self.reader = reader
        self.threads = threads or min(8, max(1, (os.cpu_count() or 1) // 2))
        self.rows = shard_rows(ledger)
        self.value_range = tuple(ledger["value_range"]) if ledger["value_range"] else None
        self.reading = Reading(
            ledger["pool"],
            dtype=check_dtype(ledger["dtype"]),
            layers=tuple(ledger["layers"] or ()),
        )

    def run(self, shards: Iterable[int], progress: Callable[[Meter], None] = lambda _: None) -> Meter:
        """Write the shards of these numbers, in order."""
        meter = Meter()
        parts: dict[int, list[torch.Tensor]] = defaultdict(list)
        with ThreadPoolExecutor(self.threads, "camae-sites") as readers:
            for encoded in self._ahead(self._passes(list(shards), readers), meter):
                self._encode(encoded, parts)
                meter.crops += len(encoded.tiles)
                for tile in encoded.tiles:
                    meter.sites += tile.last
                final = encoded.tiles[-1]
                if final.last and final.row == self.rows[final.shard][-1]:
                    self._write(final.shard, parts)
                progress(meter)
        return meter

    def _encode(self, work: _Pass, parts: dict[int, list[torch.Tensor]]) -> None:
        if work.batch is None:
            return
        rows = [tile.row for tile in work.tiles if tile.planes_CHW is not None]
        vectors = encode_batch(self.model, work.batch, [None] * len(rows), self.reading)
        for row, vector in zip(rows, vectors, strict=True):
            parts[row].append(vector)

    def _write(self, shard: int, parts: dict[int, list[torch.Tensor]]) -> None:
        """The shard's table: a row per site, the mean over its tiles, how many counted."""
        rows = list(self.rows[shard])
        vectors = torch.stack([torch.stack(parts[row]).mean(0).flatten() for row in rows]).cpu().numpy()
        metadata = self.manifest.table.iloc[rows].filter(regex="^Metadata_")
        metadata = metadata.assign(Metadata_tiles=[len(parts.pop(row)) for row in rows])
        write_table(shard_path(self.folder, shard), make_table(metadata, vectors), self.ledger)

    def _ahead(self, passes: Iterator[_Pass], meter: Meter) -> Iterator[_Pass]:
        """The passes in order, the next ones being read and put together while one is encoded."""
        with ThreadPoolExecutor(1, "camae-passes") as maker:
            waiting: deque[Future[_Pass | None]] = deque()
            try:
                waiting.extend(maker.submit(next, passes, None) for _ in range(_PASSES_AHEAD))
                while True:
                    start = time.perf_counter()
                    ready = waiting.popleft().result()
                    meter.waited += time.perf_counter() - start
                    if ready is None:
                        return
                    waiting.append(maker.submit(next, passes, None))
                    yield ready
            finally:
                for future in waiting:
                    future.cancel()

    def _passes(self, shards: list[int], readers: ThreadPoolExecutor) -> Iterator[_Pass]:
        """Tiles packed by tokens. No pass crosses a shard, and tiles without signal keep their place."""
        patch, size = self.model.config.patch, self.model.config.crop
        for run in pack(
            self._tiles(shards, readers),
            lambda tile: tile.kind,
            lambda tile: cost(len(tile.names), size, size, patch),
            self.ledger["tokens_per_pass"],
        ):
            seen = [tile for tile in run if tile.planes_CHW is not None]
            batch = None
            if seen:
                batch = PlaneBatch.from_images(
                    [t.planes_CHW for t in seen if t.planes_CHW is not None],
                    [t.names for t in seen],
                    value_range=self.value_range,
                )
                if self.model.device.type == "cuda":
                    batch = _pinned(batch)
            yield _Pass(run, batch)

    def _tiles(self, shards: list[int], readers: ThreadPoolExecutor) -> Iterator[_Tile]:
        rows = ((shard, row) for shard in shards for row in self.rows[shard])
        waiting: deque[Future[list[_Tile]]] = deque()
        for shard, row in rows:
            waiting.append(readers.submit(self._site, shard, row))
            if len(waiting) > 2 * self.threads:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()

    def _site(self, shard: int, row: int) -> list[_Tile]:
        """The tiles of a site; at least one has signal in every plane."""
        image, names = read_site(self.manifest, row, check_constant=True, backend=self.reader)
        planes_CHW, size = torch.from_numpy(image), self.model.config.crop
        value_range = self.value_range
        try:
            check_values(planes_CHW, "the site", names, self.model.config.standardization, value_range)
            height, width = image.shape[1:]
            corners = tile_corners(height, width, size, self.ledger["tiles"], self.ledger["overlap"])
        except CamaeError as error:
            raise CamaeError(f"{self.manifest.where(row)}: {error}") from None
        cuts = [planes_CHW[:, y : y + size, x : x + size] for y, x in corners]
        signal = [not constant_planes(cut, value_range).any() for cut in cuts]
        if not any(signal):
            raise CamaeError(
                f"{self.manifest.where(row)}: every tile has a constant plane; there is nothing to embed"
            )
        kind = (shard, str(image.dtype))
        return [
            _Tile(shard, row, i == len(cuts) - 1, kind, names, cut if good else None)
            for i, (cut, good) in enumerate(zip(cuts, signal, strict=True))
        ]


def _pinned(batch: PlaneBatch) -> PlaneBatch:
    """Pixels in page-locked memory, so that their copy to a GPU runs beside its work."""
    return replace(batch, planes_KHW=batch.planes_KHW.pin_memory())


def same_channels(manifest: Manifest) -> bool:
    """Whether all sites have the same channels."""
    present = (manifest.table[list(manifest.channels)] != "").to_numpy()
    return bool(np.all(present == present[0]))
