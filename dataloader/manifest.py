"""Manifest: table of a screen's sites, one row per site and one path column per channel."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd

from camae.dataloader.identity import check_sites, check_wells, normal_columns
from camae.errors import CamaeError
from camae.files import path_of, write_atomic
from camae.omissions import Omissions
from camae.text_table import as_text, column_names, read_text_table

METADATA = (
    "Metadata_Source",
    "Metadata_Batch",
    "Metadata_Plate",
    "Metadata_Well",
    "Metadata_Site",
    "Metadata_Perturbation",
    "Metadata_control_type",
)
ILLUMINATION = "Illum_"
_SHOWN_ROWS = 5  # in a notebook
MOST_CHANNELS = 1000  # far above any microscope: what has more columns is another kind of table


class Manifest:
    """Table of a screen's sites and the files of their planes.

    table:    DataFrame, one row per site: `Metadata_*` columns (text), optional `Illum_<channel>` columns
              (path of a `.npy` illumination function, applied on read) and one column per channel holding
              the plane's path, absolute or relative to `root`; "" means this site lacks that channel.
              A path may end in `#<page>` (multi-page TIFF), `#<i>,<j>..` (leading indices of a Zarr array)
              or `#<row>` (Parquet with one encoded image per row).
              The table is not to be changed in place. Wells are in one spelling: "a1" is "A01".
    root:     folder that relative paths start from; they may not leave it.
    channels: channel names in column order.
    left_out: what reading it left out: files, sites, wells.
    notes:    sentences on the joins that made it, each with the rows that matched on both sides.

    Raises CamaeError for an empty table, no channel column, a site without any plane, one site (plate, well, site,
    time, z) with different files in two rows, or one well with two perturbations.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        root: str | os.PathLike[str] = ".",
        left_out: Omissions | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        if not isinstance(table, pd.DataFrame):
            raise CamaeError(
                f"a manifest is made of a DataFrame, not of a value of type {type(table).__name__}; give the path of a "
                "file to read_manifest"
            )
        if table.empty:
            raise CamaeError("the manifest is empty: it needs one row per site")
        repeated = table.columns[table.columns.duplicated()].tolist()
        if repeated:
            raise CamaeError(
                f"the manifest has the column {repeated[0]!r} twice: column names must be unique"
            )
        if others := [name for name in table.columns if not isinstance(name, str)]:
            raise CamaeError(f"the manifest has a column named {others[0]!r}, which is no text; rename it")
        _check_width(table.columns)
        table = table.reset_index(drop=True)
        for column in table.columns:
            if column.startswith("Metadata_") or table[column].dtype != object or table[column].hasnans:
                table[column] = as_text(table[column])
        table = normal_columns(table)
        self.table = table
        self.left_out = left_out if left_out is not None else Omissions()
        self.notes = list(notes)
        self.root = Path(os.path.abspath(root))  # without "..", so that leaving it can be seen
        self.channels: tuple[str, ...] = tuple(
            str(c) for c in table.columns if not str(c).startswith(("Metadata_", ILLUMINATION))
        )
        if not self.channels:
            raise CamaeError(
                "the manifest has no channel column: beside Metadata_* it needs one path column per channel"
            )
        unknown = [c for c in table.columns if c.startswith(ILLUMINATION) and c not in self._illumination()]
        if unknown:
            warnings.warn(
                f"the column {unknown[0]} is of no channel ({', '.join(self.channels)}): it corrects nothing",
                stacklevel=2,
            )
        self._cells = table[list(self.channels)].to_numpy(dtype=object)
        bare = np.flatnonzero((self._cells == "").all(axis=1))
        if len(bare):
            raise CamaeError(f"{self.where(int(bare[0]))} names no file for any channel")
        check_sites(table, self.channels)
        check_wells(table)

    def _illumination(self) -> set[str]:
        """Names of columns of illumination functions that channels of the manifest can have."""
        return {ILLUMINATION + name for name in self.channels}

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        counts = "".join(f", {count:,} {name}" for name, count in self._counts().items())
        return (
            f"Manifest({len(self):,} sites{counts}, channels={list(self.channels)}, root={str(self.root)!r})"
        )

    def _counts(self) -> dict[str, int]:
        """How many plates, wells and perturbations the sites are of, as far as the table says."""
        keys = [name for name in METADATA[:3] if name in self.table]
        found = {}
        if "Metadata_Plate" in self.table:
            found["plates"] = len(self.table[keys].drop_duplicates())
        if "Metadata_Well" in self.table:
            found["wells"] = len(self.table[[*keys, "Metadata_Well"]].drop_duplicates())
        if "Metadata_Perturbation" in self.table:
            found["perturbations"] = len(set(self.table["Metadata_Perturbation"]) - {""})
        return found

    def _repr_html_(self) -> str:
        left_out = "".join(f"<br>{escape(line)}" for line in self.left_out.lines())
        return f"<div>{escape(repr(self))}{left_out}</div>{self.table.head(_SHOWN_ROWS).to_html()}"

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Manifest:
        """Manifest of a CSV or Parquet file; relative paths in it start from the file's folder.

        Raises MissingFileError when there is no such file, CamaeError when it is not a table.
        """
        table = read_sites(path)
        try:
            return cls(table, Path(path).absolute().parent)
        except CamaeError as error:
            raise CamaeError(f"{path}: {error}") from None

    def with_table(self, table: pd.DataFrame) -> Manifest:
        """Manifest of another table in the same folder, with what is known about the reading of this one."""
        return Manifest(table, self.root, self.left_out, self.notes)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write to `.csv` or `.parquet`, atomically; paths stay valid from the new folder."""
        path = path_of(path, "the name of the manifest").absolute()
        table = self.table
        if path.parent != self.root:
            table = table.copy()
            illumination = [c for c in table.columns if str(c).startswith(ILLUMINATION)]
            for column in [*self.channels, *illumination]:
                table[column] = [self._located(cell) if cell else "" for cell in table[column]]
        if path.suffix.lower() == ".parquet":
            write_atomic(path, lambda temporary: table.to_parquet(temporary, index=False))
        elif path.suffix.lower() == ".csv":
            write_atomic(path, lambda temporary: table.to_csv(temporary, index=False))
        else:
            raise CamaeError(f"{path}: a manifest is written as .csv or .parquet")

    def select(self, mask_or_rows: Sequence[bool] | Sequence[int] | np.ndarray | pd.Series) -> Manifest:
        """Manifest of some rows: a boolean mask over all rows, or row numbers in the wanted order."""
        chosen = np.asarray(mask_or_rows)
        if chosen.dtype == object and all(isinstance(value, bool | np.bool_) for value in chosen.flat):
            chosen = chosen.astype(bool)
        if chosen.dtype.kind == "f" and (chosen == np.rint(chosen)).all():
            chosen = chosen.astype(np.int64)
        if chosen.ndim != 1 or (len(chosen) and chosen.dtype.kind not in "biu"):
            raise CamaeError("sites are selected by a mask of booleans, or by a list of row numbers")
        if chosen.dtype == bool and len(chosen) != len(self):
            raise CamaeError(f"the mask has {len(chosen)} entries, the manifest {len(self)} rows")
        rows = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        if not len(rows):
            raise CamaeError("the selection leaves no site of the manifest")
        for row in (int(rows.min()), int(rows.max())):
            self._check_row(row)
        return self.with_table(self.table.iloc[rows])

    def fingerprint(self) -> str:
        """Hash of rows and paths, in order: 16 hexadecimal digits of the SHA-256 of the table as CSV."""
        return hashlib.sha256(self.table.to_csv(index=False).encode()).hexdigest()[:16]

    def _check_row(self, row: int) -> None:
        if not 0 <= row < len(self):
            raise CamaeError(f"the manifest has no row {row}: its rows are 0 to {len(self) - 1}")

    def plates(self) -> np.ndarray:
        """Plate of every row, (sites,) text "batch/plate": plate names repeat between batches (`Metadata_Batch`).

        Raises CamaeError without the column Metadata_Plate.
        """
        if "Metadata_Plate" not in self.table:
            raise CamaeError(
                "the manifest has no column Metadata_Plate, so its sites cannot be told apart by plate"
            )
        return (self.table.get("Metadata_Batch", "") + "/" + self.table["Metadata_Plate"]).to_numpy(str)

    def site_channels(self, row: int) -> list[str]:
        """Names of the channels this site has, in the manifest's order. Raises CamaeError for a row out of range."""
        self._check_row(row)
        return [name for name, cell in zip(self.channels, self._cells[row], strict=True) if cell]

    def path(self, row: int, channel: str) -> str:
        """Absolute path (or s3:// address) of one plane, with its `#` part if it has one.

        Raises CamaeError for a row that is not there, when the site lacks the channel, or when a relative path leaves
        the root.
        """
        self._check_row(row)
        if channel not in self.channels:
            raise CamaeError(f"the manifest has no channel {channel!r}: it has {', '.join(self.channels)}")
        cell = str(self._cells[row, self.channels.index(channel)])
        if not cell:
            raise CamaeError(f"{self.where(row, channel)} names no file: this site lacks the channel")
        try:
            return self._located(cell)
        except CamaeError as error:
            raise CamaeError(f"{self.where(row, channel)}: {error}") from None

    def illumination_path(self, row: int, channel: str) -> str | None:
        """Absolute path of the illumination function named for one plane, or None."""
        column = ILLUMINATION + channel
        cell = str(self.table.at[row, column]) if column in self.table.columns else ""
        return self._located(cell) if cell else None

    def where(self, row: int, channel: str | None = None) -> str:
        """Location for error messages: row number, plate, well, site and channel."""
        site = self.table.iloc[row]
        parts = [
            f"{name} {site[f'Metadata_{name.capitalize()}']}"
            for name in ("plate", "well", "site")
            if f"Metadata_{name.capitalize()}" in site.index
        ]
        place = f"row {row}" + (f" ({', '.join(parts)})" if parts else "")
        return place if channel is None else f"{place}, channel {channel}"

    def _located(self, cell: str) -> str:
        if "://" in cell or os.path.isabs(cell):
            return cell
        if ".." not in cell:
            return os.path.join(self.root, cell)
        path = os.path.normpath(os.path.join(self.root, cell))
        if os.path.commonpath([path, self.root]) != str(self.root):
            raise CamaeError(f"the path {cell!r} leaves the manifest's folder {self.root}")
        return path


def read_sites(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Text table of a manifest file. Raises as read_text_table, and at once for a table with too many columns."""
    try:
        _check_width(column_names(path))
    except CamaeError as error:
        raise error if str(path) in str(error) else CamaeError(f"{path}: {error}") from None
    return read_text_table(path)


def _check_width(columns: Sequence[str] | pd.Index) -> None:
    channels = sum(not str(c).startswith(("Metadata_", ILLUMINATION)) for c in columns)
    if channels > MOST_CHANNELS or len(columns) > 4 * MOST_CHANNELS:
        raise CamaeError(
            f"the table has {len(columns):,} columns, {channels:,} of them channels: a manifest has one row per site "
            f"and one path column per channel, at most {MOST_CHANNELS:,}"
        )
