"""Shards: Parquet files of a screen's sites, written whole, and the table of all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from camae.embedding.store.ledger import LEDGER, Ledger
from camae.embedding_table import about_of, by_well, make_table, read_table, write_table
from camae.errors import CamaeError

TILE_COUNT = "Metadata_tiles"


def shard_path(folder: Path, number: int) -> Path:
    """Path of a shard."""
    return folder / "sites" / f"part-{number:05d}.parquet"


def write_shard(
    folder: Path,
    number: int,
    ledger: Ledger,
    metadata: pd.DataFrame,
    vectors_ND: np.ndarray,
    tiles: list[int],
) -> Path:
    """Write the table of a shard: metadata, how many tiles each site's vector is the mean of, and the vectors."""
    table = make_table(metadata.assign(**{TILE_COUNT: tiles}), vectors_ND)
    return write_table(shard_path(folder, number), table, ledger.to_json())


def is_done(folder: Path, number: int, ledger: Ledger) -> bool:
    """Whether a shard is there. Raises CamaeError for one of another ledger."""
    path = shard_path(folder, number)
    if not path.exists():
        return False
    try:
        rows, about = pq.read_metadata(path).num_rows, about_of(pq.read_schema(path))
    except (pa.ArrowException, OSError) as error:
        raise CamaeError(
            f"{path}: not a readable Parquet file ({error}); delete it and start again"
        ) from None
    if about != ledger.to_json() or rows != len(ledger.shard_rows[number]):
        raise CamaeError(
            f"{path} is not of the embeddings that {folder / LEDGER} describes (another model or setting); take it "
            "away, output is never mixed"
        )
    return True


def missing_shards(folder: Path, ledger: Ledger) -> list[int]:
    """Numbers of the shards that are not there yet."""
    return [n for n in range(len(ledger.shard_rows)) if not is_done(folder, n, ledger)]


def read_shards(folder: Path, numbers: range) -> pd.DataFrame:
    """Rows of these shards, in order; an empty table when there are none."""
    return pd.concat([pd.DataFrame(), *(read_table(shard_path(folder, n))[0] for n in numbers)])


def merge_shards(folder: Path, ledger: Ledger, level: str) -> pd.DataFrame | None:
    """Write and return the table of all shards, by "well" or "site"; None when shards are missing."""
    if missing_shards(folder, ledger):
        return None
    for leftover in (folder / "sites").glob(".part-*"):
        leftover.unlink(missing_ok=True)
    sites = read_shards(folder, range(len(ledger.shard_rows)))
    table = by_well(sites) if level == "well" else sites.reset_index(drop=True)
    write_table(table_path(folder, level), table, ledger.to_json())
    return table


def table_path(folder: Path, level: str) -> Path:
    """Path of the table of wells or sites."""
    return folder / f"{level}s.parquet"
