"""`camae.embed_screen`: a whole screen to Parquet, shard by shard, resumable, nothing twice and nothing lost."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from camae.dataloader.datasets import read_manifest
from camae.dataloader.images import read_site
from camae.dataloader.manifest import Manifest
from camae.embedding.default_model import resolve_model
from camae.embedding.images import check_image, default_budget, encode_samples
from camae.embedding.pooling import check_pool
from camae.embedding.tiles import tile_corners
from camae.errors import CamaeError
from camae.files import write_json
from camae.model.ca_mae import CAMAE
from camae.model.checkpoint import model_hash
from camae.tables import by_well, features_of, make_table, read_table, write_table
from camae.training.log import progress_bar

_LEDGER = "ledger.json"
_READ_AHEAD = 4


def embed_screen(
    manifest: Manifest | str | Path,
    model: CAMAE | str | Path | None = None,
    out: str | Path = "emb",
    *,
    tiles: str = "grid",
    overlap: float = 0.0,
    pool: str = "mean",
    level: str = "well",
    value_range: tuple[float, float] | None = None,
    dtype: torch.dtype | str | None = None,
    sites_per_shard: int = 256,
    tokens_per_pass: int | None = None,
    format: str | None = None,
    incomplete: str = "error",
    pattern: str | None = None,
    reader: str | None = None,
    quiet: bool = False,
) -> pd.DataFrame:
    """Embed every site of a screen and return the table of its wells.

    manifest: object, file, or a folder a reader knows. model: as in `camae.embed`.
    tiles: "grid" (non-overlapping model-sized tiles, as the paper embedded RxRx3), "cover" or "center";
        a site's vector is the mean over its tiles. Tiles in which a plane is constant are left out;
        the column Metadata_tiles says how many counted.
    pool: "mean" or "cls"; "per_channel" concatenates the channels (sites must then have equal channel counts).
    level: "well" (mean over sites) or "site".
    format, incomplete, pattern: how a folder is read, as in `camae.dataloader.read_manifest`.
    reader: image back-end, "native" (default: 8- and 16-bit), "tifffile" (also float) or "dali".
    sites_per_shard, tokens_per_pass: fixed in the ledger at the first start, so that a resumed run packs the
        same batches and equals an uninterrupted one bitwise on a CPU.

    Writes `sites/part-00000.parquet` ... , `ledger.json` and `wells.parquet` (or `sites.parquet`) into `out`.
    A killed run continues where it stopped. Raises CamaeError when `out` belongs to another model, manifest or
    setting, and for images that cannot be embedded, naming row, file and channel.
    """
    check_pool(pool)
    if level not in ("well", "site"):
        raise CamaeError(f"level {level!r} is not 'well' or 'site'")
    net = resolve_model(model)
    sites = read_manifest(manifest, format=format, incomplete=incomplete, pattern=pattern)
    if len(sites) == 0:
        raise CamaeError("the manifest has no rows: nothing to embed")
    settings = {
        "tiles": tiles,
        "overlap": overlap,
        "pool": pool,
        "value_range": list(value_range) if value_range else None,
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "sites_per_shard": sites_per_shard,
        "tokens_per_pass": tokens_per_pass,
    }
    about = {
        "model": net.config.name,
        "model_hash": model_hash(net),
        "manifest_hash": _manifest_hash(sites),
        "standardization": net.config.standardization,
        "crop": net.config.crop,
    } | settings
    folder = Path(out)
    _claim(folder, about)
    _Screen(net, sites, folder, about, reader).run(quiet)
    table = pd.concat([read_table(p)[0] for p in sorted((folder / "sites").glob("part-*.parquet"))])
    table = by_well(table) if level == "well" else table.reset_index(drop=True)
    write_table(folder / f"{level}s.parquet", table, about)
    return table


def _manifest_hash(manifest: Manifest) -> str:
    """Fingerprint of rows and paths, in order."""
    text = manifest.table.to_csv(index=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _claim(folder: Path, about: dict[str, Any]) -> None:
    """Take the output folder for this model, manifest and settings, or refuse."""
    ledger = folder / _LEDGER
    if ledger.exists():
        before = json.loads(ledger.read_text())
        if changed := [k for k in about if before.get(k) != about[k]]:
            raise CamaeError(
                f"{folder} holds embeddings made with another {', '.join(changed)}; "
                "choose another folder, output is never mixed"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(ledger, about)


class _Screen:
    """The work of one screen: plan of shards, sites read ahead, shards written whole."""

    def __init__(
        self, model: CAMAE, manifest: Manifest, folder: Path, about: dict[str, Any], reader: str | None
    ):
        self.model, self.manifest, self.folder, self.about, self.reader = (
            model,
            manifest,
            folder,
            about,
            reader,
        )

    def run(self, quiet: bool) -> None:
        """Embed the shards that are not there yet."""
        step, total = self.about["sites_per_shard"], len(self.manifest)
        shards = [range(i, min(i + step, total)) for i in range(0, total, step)]
        with progress_bar(disable=quiet) as bar, ThreadPoolExecutor(1, "camae-sites") as reader:
            task = bar.add_task("embedding sites", total=total, status="")
            for number, rows in enumerate(shards):
                path = self.folder / "sites" / f"part-{number:05d}.parquet"
                if not path.exists():
                    self._shard(path, rows, reader)
                bar.update(task, advance=len(rows))

    def _shard(self, path: Path, rows: range, reader: ThreadPoolExecutor) -> None:
        """One shard: whole sites are gathered until they fill a pass, so that memory stays bounded."""
        budget = self.about["tokens_per_pass"] or default_budget(self.model)
        vectors: list[np.ndarray] = []
        waiting: list[tuple[list[torch.Tensor], list[str]]] = []
        counts, tokens = [], 0
        for tiles, channels in self._read_ahead(rows, reader):
            waiting.append((tiles, channels))
            counts.append(len(tiles))
            tokens += len(tiles) * len(channels) * self.model.config.n_patches
            if tokens >= budget:
                vectors += self._encode(waiting, budget)
                waiting, tokens = [], 0
        vectors += self._encode(waiting, budget)
        if len({len(v) for v in vectors}) > 1:
            raise CamaeError(
                "pool='per_channel' needs sites with equal channel counts; select them or use pool='mean'"
            )
        metadata = self.manifest.table.iloc[list(rows)].filter(regex="^Metadata_")
        metadata = metadata.assign(Metadata_tiles=counts)
        write_table(path, make_table(metadata, np.stack(vectors)), self.about)

    def _encode(self, sites: list[tuple[list[torch.Tensor], list[str]]], budget: int) -> list[np.ndarray]:
        """One vector per site: the mean over its tiles."""
        encoded = encode_samples(
            self.model,
            [tile for tiles, _ in sites for tile in tiles],
            [channels for tiles, channels in sites for _ in tiles],
            self.about["pool"],
            value_range=self.about["value_range"],
            dtype=self.about["dtype"],
            tokens_per_pass=budget,
        )
        ends = np.cumsum([len(tiles) for tiles, _ in sites])
        of_sites = [encoded[end - len(tiles) : end] for end, (tiles, _) in zip(ends, sites, strict=True)]
        return [torch.stack(vs).mean(0).flatten().cpu().numpy() for vs in of_sites]

    def _read_ahead(
        self, rows: range, reader: ThreadPoolExecutor
    ) -> Iterator[tuple[list[torch.Tensor], list[str]]]:
        """Tiles and channel names of each row, the next few being read while one is used."""
        waiting = []
        for row in rows:
            waiting.append(reader.submit(self._tiles, row))
            if len(waiting) > _READ_AHEAD:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()

    def _tiles(self, row: int) -> tuple[list[torch.Tensor], list[str]]:
        """Tiles of a site in which every plane has signal, and their channel names."""
        image, channels = read_site(self.manifest, row, check_constant=True, backend=self.reader)
        size = self.model.config.crop
        try:
            check_image(torch.from_numpy(image), "the site", channels, self.model, self.about["value_range"])
            height, width = image.shape[1:]
            corners = tile_corners(height, width, size, self.about["tiles"], self.about["overlap"])
        except CamaeError as error:
            raise CamaeError(f"{self.manifest.where(row)}: {error}") from None
        windows = [image[:, y : y + size, x : x + size] for y, x in corners]
        with_signal = [w for w in windows if (w.max((1, 2)) > w.min((1, 2))).all()]
        if not with_signal:
            raise CamaeError(
                f"{self.manifest.where(row)}: every tile has a constant plane; there is nothing to embed"
            )
        return [torch.from_numpy(np.ascontiguousarray(w)) for w in with_signal], channels


def read_embeddings(path: str | Path) -> tuple[pd.DataFrame, np.ndarray]:
    """Metadata and features (N, D) of an embeddings table."""
    table, _ = read_table(path)
    return table.filter(regex="^Metadata_"), features_of(table)
