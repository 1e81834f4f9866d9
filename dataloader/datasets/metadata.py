"""Metadata join: perturbations from separate tables, as JUMP (cpg0016) publishes them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence

import pandas as pd

from camae.dataloader.datasets.joins import joined
from camae.dataloader.datasets.platemaps import perturbations
from camae.dataloader.manifest import Manifest
from camae.errors import CamaeError
from camae.text_table import read_text_table

_KEYS = {
    "source": "Metadata_Source",
    "batch": "Metadata_Batch",
    "plate": "Metadata_Plate",
    "well": "Metadata_Well",
    "site": "Metadata_Site",
    "wellposition": "Metadata_Well",
    "wellname": "Metadata_Well",
}


def with_tables(
    manifest: Manifest, tables: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
) -> Manifest:
    """Left join of tables, in order, on all Metadata_* columns that each shares with the manifest so far.

    For JUMP: well.csv.gz (source, plate, well -> JCP2022), then crispr, orf or compound, then perturbation_control.
    Columns may be named without Metadata_ ("Well", "well_position", "gene"). Perturbation and control type are then
    named anew where they were empty. `notes` of the result says how many rows matched on both sides; sites without a
    match are warned of.
    Raises CamaeError when a table shares no column, would repeat sites, or matches none.
    """
    table, notes = manifest.table.copy(), list(manifest.notes)
    for path in [tables] if isinstance(tables, str | os.PathLike) else tables:
        extra = _prefixed(read_text_table(path), path)
        shared = [c for c in extra.columns if c in table.columns]
        # Columns both have but that are empty so far are filled, not matched.
        keys = [c for c in shared if (table[c] != "").any()]
        if not keys:
            raise CamaeError(f"{path}: shares no Metadata_ column with the manifest")
        table, match = joined(table, extra, keys, str(path))
        notes.append(str(match))
        if match.left_over:
            warnings.warn(str(match), stacklevel=3)
    perturbation, control = perturbations(table)
    old = manifest.table
    columns = ("Metadata_Perturbation", perturbation), ("Metadata_control_type", control)
    for column, values in columns:
        before = old[column] if column in old else pd.Series("", index=old.index)
        table[column] = before.where(before != "", pd.Series(values, index=old.index))
    order = [c for c in table.columns if c.startswith("Metadata_")]
    table = table[[*order, *(c for c in table.columns if c not in order)]]
    return Manifest(table, manifest.root, manifest.left_out, notes)


def _prefixed(table: pd.DataFrame, path: str | os.PathLike[str]) -> pd.DataFrame:
    """Table with all columns as Metadata_*, the keys in the manifest's spelling."""
    names = {}
    for column in table.columns:
        plain = column.removeprefix("Metadata_")
        names[column] = _KEYS.get(plain.lower().replace("_", "").replace(" ", ""), f"Metadata_{plain}")
    twice = [c for c in names if list(names.values()).count(names[c]) > 1]
    if twice:
        raise CamaeError(f"{path}: {' and '.join(twice[:2])} are the same column: remove one")
    return table.rename(columns=names)
