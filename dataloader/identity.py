"""Identity of a screen's sites: what makes two rows of a table the same site or the same well, and what must agree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from camae.errors import CamaeError
from camae.wells import SITE, WELL, known_column, spelled

# Columns that describe a well: its sites must agree on them.
_OF_A_WELL = {"Metadata_Perturbation": "perturbations", "Metadata_control_type": "control types"}


def metadata_column(name: str) -> str:
    """Column of a table about wells as a Metadata_* column, identity columns in their one spelling."""
    full = name if name.startswith("Metadata_") else f"Metadata_{name}"
    return known_column(full)


def normal_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Table with the identity columns in one spelling ("metadata_well" is "Metadata_Well"), and the cells of metadata:
    wells ("a1" is "A01"), sites ("01" is "1"), names without blanks around them and with composed accents.

    Raises CamaeError where two columns are one in this spelling, or a column such as "Well" would be a channel.
    """
    names = {c: known_column(str(c)) for c in table.columns}
    twice = [c for c in names if c != names[c] and names[c] in names]
    if twice:
        raise CamaeError(f"the columns {twice[0]!r} and {names[twice[0]]!r} are the same: remove one")
    plain = [c for c in table.columns if len(str(c)) > 1 and known_column(f"metadata_{c}") != f"metadata_{c}"]
    if plain:
        raise CamaeError(
            f"the column {plain[0]!r} would be taken for a channel: name it {known_column(f'metadata_{plain[0]}')!r}"
        )
    table = table.rename(columns=names)
    for name in table.columns:
        if str(name).startswith("Metadata_"):
            table[name] = spelled(table[name], str(name))
    return table


def check_sites(table: pd.DataFrame, channels: Sequence[str]) -> None:
    """Raise CamaeError where one site (plate, well, site, time, z) stands in two rows that name different files."""
    keys = [c for c in SITE if c in table]
    if "Metadata_Site" not in keys or len(keys) < 2:
        return
    named = (table["Metadata_Site"] != "").to_numpy()
    again = np.flatnonzero(table.duplicated(keys).to_numpy() & named)
    if not len(again):
        return
    group = table.groupby(keys, sort=False).ngroup().to_numpy()
    first = np.zeros(group.max() + 1, np.int64)
    first[group[::-1]] = np.arange(len(table))[::-1]
    earlier = first[group[again]]
    cells = table[list(channels)].to_numpy(dtype=object)
    differs = cells[again] != cells[earlier]
    for row, other, unlike in zip(again.tolist(), earlier.tolist(), differs, strict=True):
        if unlike.any():
            channel = int(np.flatnonzero(unlike)[0])
            raise CamaeError(
                f"rows {other} and {row} are both {place(table, keys, row)} but name different files "
                f"({channels[channel]}: {cells[other, channel] or 'none'} and {cells[row, channel] or 'none'}): "
                "give time points or planes a column Metadata_Time or Metadata_Z, or remove one"
            )


def check_wells(table: pd.DataFrame) -> None:
    """Raise CamaeError, naming both, where the sites of one well have two perturbations or two control types."""
    keys = [c for c in WELL if c in table]
    columns = [c for c in _OF_A_WELL if c in table]
    if "Metadata_Well" not in keys or not columns:
        return
    rows = table.loc[table["Metadata_Well"] != "", [*keys, *columns]].drop_duplicates()
    for column in columns:
        kinds = rows[[*keys, column]].drop_duplicates()
        repeated = np.flatnonzero(kinds.duplicated(keys, keep=False).to_numpy())
        if len(repeated):
            row = kinds.iloc[repeated[0]]
            same = kinds[(kinds[keys] == row[keys]).all(axis=1)][column].tolist()[:2]
            first, second = (repr(name) if name else "none" for name in same)
            raise CamaeError(
                f"{place(table, keys, kinds.index[repeated[0]])} has two {_OF_A_WELL[column]}, {first} and {second}: "
                "a well has one"
            )


def place(table: pd.DataFrame, keys: Sequence[str], row: int) -> str:
    """Words for a row's site or well, e.g. "plate P1, well A01, site 1"."""
    site = table.loc[row]
    return ", ".join(f"{c.removeprefix('Metadata_').lower()} {site[c]}" for c in keys if site[c] != "")
