"""Embeddings of single sites as the Cell Painting Gallery has those of JUMP-lite: long-form Parquet, a file a site.

`workspace_dl/embeddings/<model>-<codec>/2026_jump_lite_v1.0/<source>/<batch>/<plate>/<well>-<site>/embedding.parquet`
with the columns tile, label, branch, metric, value, object, tp, a row for each number of the site's vector. A vector of
ours is the mean over a site's tiles, so `tile` is 0; `label` and `tp` are 0 (no segmented object, no time), `branch` is
"camae", `object` the model, and `metric` counts X_0, X_1 ... as in the published files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from camae.dataloader.backends.addresses import split_address
from camae.dataloader.datasets.jump_lite import KEY, RELEASE
from camae.dataloader.manifest import Manifest
from camae.embedding.store.ledger import Ledger
from camae.embedding.store.shards import recorded_inputs, shard_path
from camae.embedding_table import features_of, read_table
from camae.errors import CamaeError
from camae.files import local_path, write_atomic

FOLDER = Path("workspace_dl", "embeddings")
FILE = "embedding.parquet"
_ABOUT = b"camae"
_THREADS = 8  # a disk flushes many small files at once quicker than one after the other
_TYPES = {
    "tile": pa.int64(),
    "label": pa.int64(),
    "branch": pa.string(),
    "metric": pa.string(),
    "value": pa.float32(),
    "object": pa.string(),
    "tp": pa.int64(),
}


@dataclass(frozen=True)
class GalleryFiles:
    """Where the files of a run go. folder: of all sites; model: its name in the Gallery's form, in every row."""

    folder: Path
    model: str

    @classmethod
    def of(cls, out: Path, model: str, manifest: Manifest) -> GalleryFiles:
        """The files of a model and of the store that a manifest of JUMP-lite names, in the output folder of a run.

        Raises CamaeError for a manifest that is not of JUMP-lite.
        """
        if KEY not in manifest.table:
            raise CamaeError(
                f"the manifest has no column {KEY}, and the Gallery's files are named by it; read the site index of "
                "JUMP-lite, or leave jump_lite out"
            )
        store = Path(split_address(manifest.path(0, manifest.site_channels(0)[0]))[0]).parent
        name = re.sub(r"[^\w.]+", "_", model)
        return cls(out / FOLDER / f"{name}-{store.stem}" / RELEASE, name)

    def path(self, key: str) -> Path:
        """Path of a site's file, by its key <source>__<batch>__<plate>__<well>__<site>."""
        source, batch, plate, well, site = key.split("__")
        return self.folder / source / batch / plate / f"{well}-{site}" / FILE

    def write(
        self,
        run: Path,
        ledger: Ledger,
        shards: Sequence[int],
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> int:
        """Write the files of the sites of these shards in the folder `run`, and return their number.

        Files that are there already, of the same ledger and the same state of the images, stay as they are.
        """
        total, done = sum(len(ledger.shard_rows[n]) for n in shards), 0
        with ThreadPoolExecutor(_THREADS, "camae-gallery") as pool:
            for number in shards:
                table, _ = read_table(shard_path(run, number))
                states = recorded_inputs(run, number, ledger) or [""] * len(table)
                list(pool.map(self._write_site, *self._arguments(table, states, ledger)))
                done += len(table)
                progress(done, total)
        return done

    def _arguments(
        self, table: pd.DataFrame, states: Sequence[str], ledger: Ledger
    ) -> tuple[list[str], list[npt.NDArray[np.float32]], list[bytes]]:
        """Key, vector and description of every site of a shard."""
        about = ledger.to_json()
        texts = [json.dumps(about | {"inputs": state}).encode() for state in states]
        return table[KEY].tolist(), list(features_of(table)), texts

    def _write_site(self, key: str, vector_D: npt.NDArray[np.float32], about: bytes) -> None:
        path = self.path(key)
        if _described(path) == about:
            return
        table = long_form(vector_D, self.model).replace_schema_metadata({_ABOUT: about})
        write_atomic(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def long_form(vector_D: npt.NDArray[np.float32], model: str) -> pa.Table:
    """The vector of one site as the Gallery's table: D rows of tile, label, branch, metric, value, object, tp."""
    count = len(vector_D)
    zeros = np.zeros(count, np.int64)
    columns = {
        "tile": zeros,
        "label": zeros,
        "branch": ["camae"] * count,
        "metric": [f"X_{i}" for i in range(count)],
        "value": vector_D,
        "object": [model] * count,
        "tp": zeros,
    }
    return pa.table({name: pa.array(columns[name], kind) for name, kind in _TYPES.items()})


def _described(path: Path) -> bytes:
    """What a file says of itself; nothing where it is not there or cannot be read."""
    try:
        return (pq.read_schema(local_path(path)).metadata or {}).get(_ABOUT, b"")
    except (OSError, pa.ArrowException):
        return b""
