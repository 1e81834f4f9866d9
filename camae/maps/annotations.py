"""Annotations joined to profiles: targets of compounds, cell lines of plates, from a table of their own."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pandas as pd

from camae.errors import CamaeError
from camae.maps.inputs import listing
from camae.maps.profiles import ProfileTable
from camae.text_table import read_text_table

_PREFIX = re.compile(r"^(Image_)?Metadata_")


def annotated(profiles: ProfileTable, path: str | Path) -> tuple[ProfileTable, str]:
    """Profiles with the columns of an annotation table beside their metadata, and a line that says how they met.

    path: table of text (`camae.text_table.read_text_table`), one line for each compound, gene, plate or well position.
    Rows meet by the first of its columns that the profiles have as well, with or without "Metadata_", whose cells are
    distinct; its other columns become Metadata_<name>, "" where nothing met. Columns that the profiles have stay.
    Raises CamaeError where no column serves, or no cell meets; MissingFileError where there is no such file.
    """
    table = read_text_table(path)
    bare = {name: _PREFIX.sub("", str(name)) for name in table.columns}
    own = {_PREFIX.sub("", str(name)): str(name) for name in profiles.meta.columns}
    shared = [name for name in table.columns if bare[name] in own]
    keys = [name for name in shared if not table[name][table[name] != ""].duplicated().any()]
    if not keys:
        why = (
            f"{listing(shared)} stand more than once in it"
            if shared
            else "none of its columns is a column of them"
        )
        raise CamaeError(
            f"{path}: cannot be joined to the profiles, because {why}; it needs a column of distinct keys"
        )
    key, name = keys[0], own[bare[keys[0]]]
    row_of = {cell: row for row, cell in enumerate(table[key]) if cell != ""}
    found = profiles.meta[name].map(row_of)
    met = found.notna()
    if not met.any():
        raise CamaeError(
            f"{path}: no {key} of it is in {name} of the profiles (first: {table[key].iloc[0]} and "
            f"{profiles.meta[name].iloc[0]})"
        )
    meta = profiles.meta.copy()
    for column in table.columns:
        if bare[column] not in own:
            values = pd.Series("", index=meta.index, dtype=object)
            values[met] = table[column].to_numpy()[found[met].astype(int)]
            meta[f"Metadata_{bare[column]}"] = values
    return dataclasses.replace(
        profiles, meta=meta
    ), f"{path}: {int(met.sum())} of {len(met)} profiles met by {name}"
