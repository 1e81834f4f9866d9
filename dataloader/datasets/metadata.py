"""Metadata join: perturbations from separate tables, as JUMP (cpg0016) publishes them."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pandas as pd

from camae.dataloader.datasets.common import normal_well
from camae.dataloader.datasets.platemaps import perturbations
from camae.dataloader.manifest import Manifest
from camae.errors import CamaeError
from camae.text_table import read_text_table


def with_tables(manifest: Manifest, tables: Sequence[str | os.PathLike[str]]) -> Manifest:
    """Left join of tables, in order, on all Metadata_* columns that each shares with the manifest so far.

    For JUMP: well.csv.gz (source, plate, well -> JCP2022), then crispr, orf or compound, then perturbation_control.
    Perturbation and control type are then named anew where they were empty.
    Raises CamaeError when a table shares no column or would repeat sites.
    """
    joined = manifest.table.copy()
    for path in tables:
        extra = read_text_table(path)
        if "Metadata_Well" in extra:
            extra["Metadata_Well"] = extra["Metadata_Well"].map(normal_well)
        shared = [c for c in extra.columns if c in joined.columns and c.startswith("Metadata_")]
        # Columns both have but that are empty so far are filled, not matched.
        keys = [c for c in shared if (joined[c] != "").any()]
        if not keys:
            raise CamaeError(f"{path}: shares no Metadata_ column with the manifest")
        new = [c for c in extra.columns if c.startswith("Metadata_") and c not in keys]
        extra = extra[[*keys, *new]].drop_duplicates()
        if extra.duplicated(keys).any():
            raise CamaeError(f"{path}: has several rows for one {' '.join(keys)}")
        joined = (
            joined.drop(columns=[c for c in new if c in joined]).merge(extra, on=keys, how="left").fillna("")
        )
    perturbation, control = perturbations(joined)
    old = manifest.table
    columns = ("Metadata_Perturbation", perturbation), ("Metadata_control_type", control)
    for column, values in columns:
        before = old[column] if column in old else pd.Series("", index=old.index)
        joined[column] = before.where(before != "", pd.Series(values, index=old.index))
    order = [c for c in joined.columns if c.startswith("Metadata_")]
    return Manifest(joined[[*order, *(c for c in joined.columns if c not in order)]], manifest.root)
