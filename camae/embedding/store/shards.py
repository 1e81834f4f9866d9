"""Shards: Parquet files of a screen's sites, written whole, and the table of all of them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from camae.embedding.store.inputs import InputStates
from camae.embedding.store.ledger import LEDGER, Ledger
from camae.embedding_table import about_of, by_well, make_table, read_table, write_table
from camae.errors import CamaeError
from camae.files import local_path, output_errors

TILE_COUNT = "Metadata_tiles"
_INPUTS = "inputs"  # beside the ledger in a shard's metadata: the state of each site's files


@dataclass(frozen=True)
class ShardStates:
    """Numbers of shards: those that are not there, those whose images have changed since, and those that do not say."""

    missing: list[int]
    stale: list[int]
    unnoted: list[int]

    @property
    def unwritten(self) -> list[int]:
        """Those to be written."""
        return sorted([*self.missing, *self.stale])

    def warn(self, folder: Path, ledger: Ledger, inputs: InputStates) -> None:
        """One warning for images that have changed, and one for shards of a version that did not note their state."""
        if self.stale:
            first = ledger.shard_rows[self.stale[0]]
            recorded = recorded_inputs(folder, self.stale[0], ledger) or []
            changed = [a != b for a, b in zip(recorded, inputs.of_rows(first), strict=True)]
            warnings.warn(
                f"{folder}: images have changed since they were embedded (first: "
                f"{inputs.manifest.where(first[changed.index(True)])}); {len(self.stale)} of "
                f"{len(ledger.shard_rows)} shards are embedded anew",
                stacklevel=5,
            )
        if self.unnoted:
            warnings.warn(
                f"{folder} was begun by an earlier version, which did not note the state of the images: "
                f"{len(self.unnoted)} of {len(ledger.shard_rows)} shards are taken as they are; choose another "
                "folder if images have changed since",
                stacklevel=5,
            )


def shard_path(folder: Path, number: int) -> Path:
    """Path of a shard."""
    return folder / "sites" / f"part-{number:05d}.parquet"


def write_shard(
    folder: Path,
    number: int,
    ledger: Ledger,
    metadata: pd.DataFrame,
    vectors_ND: np.ndarray,
    columns: list[str],
    tiles: list[int],
    inputs: list[str],
) -> Path:
    """Write the table of a shard: metadata, how many tiles each site's vector is the mean of, and the vectors.

    columns: names of the D features. inputs: state of each site's files (`InputStates`).
    """
    table = make_table(metadata.assign(**{TILE_COUNT: tiles}), vectors_ND, columns)
    return write_table(shard_path(folder, number), table, ledger.to_json() | {_INPUTS: inputs})


def recorded_inputs(folder: Path, number: int, ledger: Ledger) -> list[str] | None:
    """The state of each site's files when a shard was written; [] where it does not say, None where there is none.

    Raises CamaeError for a shard of another ledger.
    """
    path = shard_path(folder, number)
    if not path.exists():
        return None
    try:
        shard = local_path(path)
        rows, about = pq.read_metadata(shard).num_rows, about_of(pq.read_schema(shard))
    except (pa.ArrowException, OSError) as error:
        raise CamaeError(
            f"{path}: not a readable Parquet file ({error}); delete it and start again"
        ) from None
    recorded = about.pop(_INPUTS, [])
    if about != ledger.to_json() or rows != len(ledger.shard_rows[number]):
        raise CamaeError(
            f"{path} is not of the embeddings that {folder / LEDGER} describes (another model or setting); take it "
            "away, output is never mixed"
        )
    return cast("list[str]", recorded)


def shard_states(
    folder: Path, ledger: Ledger, inputs: InputStates, numbers: Sequence[int] | None = None
) -> ShardStates:
    """State of these shards, or of all. Raises CamaeError for one of another ledger."""
    found = ShardStates([], [], [])
    for number in range(len(ledger.shard_rows)) if numbers is None else numbers:
        recorded = recorded_inputs(folder, number, ledger)
        if recorded is None:
            found.missing.append(number)
        elif not recorded:
            found.unnoted.append(number)
        elif recorded != inputs.of_rows(ledger.shard_rows[number]):
            found.stale.append(number)
    return found


def read_shards(folder: Path, numbers: range) -> pd.DataFrame:
    """Rows of these shards, in order; an empty table when there are none."""
    return pd.concat([pd.DataFrame(), *(read_table(shard_path(folder, n))[0] for n in numbers)])


def merge_shards(folder: Path, ledger: Ledger, level: str, inputs: InputStates) -> pd.DataFrame | None:
    """Write and return the table of all shards, by "well" or "site"; None when some are not there or stale."""
    if shard_states(folder, ledger, inputs).unwritten:
        return None
    with output_errors(folder):
        for leftover in [
            *(folder / "sites").glob(".part-*"),
            *folder.glob(f".{level}s.*"),
            *folder.glob(".ledger.*"),
        ]:
            leftover.unlink(missing_ok=True)
    sites = read_shards(folder, range(len(ledger.shard_rows)))
    table = by_well(sites) if level == "well" else sites.reset_index(drop=True)
    write_table(table_path(folder, level), table, ledger.to_json())
    return table


def table_path(folder: Path, level: str) -> Path:
    """Path of the table of wells or sites."""
    return folder / f"{level}s.parquet"
