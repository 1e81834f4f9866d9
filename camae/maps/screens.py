"""Profiles of a screen, ready to be mapped: from files or a table, with plates, perturbations and controls named.

One reader for `camae map` and `camae benchmark`, so that both see the same rows of the same screen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from camae.errors import CamaeError
from camae.maps.profiles import ProfileTable, column, join_profile_tables, profiles_of, read_profile_table
from camae.maps.replicates import ReplicateUnit, well_of
from camae.omissions import Omissions
from camae.text_table import as_text
from camae.wells import PLATE

Profiles: TypeAlias = pd.DataFrame | ProfileTable | str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class ScreenColumns:
    """Metadata columns of a screen. negative: the value of `control` that marks negative controls."""

    perturbation: str = "Metadata_Perturbation"
    plate: str | None = "Metadata_Plate"
    control: str = "Metadata_control_type"
    negative: str = "negcon"


@dataclass(frozen=True)
class Screen:
    """Profiles of a screen, n rows.

    x: (n, d) features. perturbation, plate: n texts (plate None: not asked for). control: n booleans, negative
    controls. meta: all metadata. omitted: columns that are no features. notes: these and what was done to the rows.
    """

    x: np.ndarray
    perturbation: npt.NDArray[np.str_]
    plate: npt.NDArray[np.str_] | None
    control: npt.NDArray[np.bool_]
    meta: pd.DataFrame
    omitted: Omissions
    notes: list[str] = field(default_factory=list)


def read_screen(profiles: Profiles, columns: ScreenColumns, unit: ReplicateUnit = "well") -> Screen:
    """Profiles of a screen.

    profiles: a table, a file of any kind that `read_profiles` takes, or several files (plates) of one screen. unit:
    "well" averages sites by well, "site" keeps them as replicates, None refuses them.
    Raises CamaeError for a missing column, a row without a plate, features that are not finite, or no controls;
    MissingFileError when there is no such file.
    """
    if unit not in ("well", "site", None):
        raise CamaeError(f"unknown unit {unit!r}; choose 'well' or 'site'")
    table = _read(profiles)
    if (
        columns.plate is not None and "Metadata_Plate" not in table.meta
    ):  # wells are told apart by their plate
        plates = column(table.meta, columns.plate, "plate")
        table = dataclasses.replace(table, meta=table.meta.assign(Metadata_Plate=plates))
    notes = [f"{table.source}: {line}" for line in table.omitted.lines()]
    if table.unit == "site" and unit != "site":
        before = len(table.meta)
        if unit is None:
            raise CamaeError(
                f"{table.source}: its {before:,} rows are sites, and sites of one well are no replicates; unit='well' "
                "averages them, unit='site' counts them all the same"
            )
        table = table.by_well()
        notes.append(
            f"{before:,} sites were averaged to {len(table.meta):,} wells: sites of one well are no replicates"
        )
    well_N = well_of(table.meta)
    if unit != "site" and well_N is not None and pd.Series(well_N[well_N >= 0]).duplicated().any():
        notes.append(
            "rows of one well at several times or depths are kept apart; they are no replicates, so give one at a time"
        )
    table.check_finite()
    plate = None if columns.plate is None else plates_of(table.meta, columns.plate, notes)
    if plate is not None and (plate == "").any():
        raise CamaeError(
            f"{table.source}: {columns.plate} is empty in {int((plate == '').sum())} rows (first: row "
            f"{int((plate == '').argmax())}); every profile needs its plate"
        )
    control = column(table.meta, columns.control, "negative controls") == columns.negative
    if not control.any():
        raise CamaeError(
            f"{table.source}: no well is a negative control: {columns.control} says '{columns.negative}' nowhere"
        )
    name = column(table.meta, columns.perturbation, "perturbation")
    unnamed = (name == "") & ~control
    if unnamed.any():
        notes.append(
            f"{int(unnamed.sum())} rows name no perturbation in {columns.perturbation} and are left out (first: row "
            f"{int(unnamed.argmax())})"
        )
    return Screen(table.x, name, plate, control, table.meta, table.omitted, notes)


def plates_of(meta: pd.DataFrame, name: str, notes: list[str]) -> npt.NDArray[np.str_]:
    """Plate of each row; with its batch and source where plates of one name stand in several, as a note then says."""
    plate = column(meta, name, "plate")
    wider = [meta[c] for c in PLATE[:-1] if c in meta]
    if not wider or not np.array_equal(plate, as_text(meta["Metadata_Plate"])):
        return plate
    whole = pd.Series(["/".join(filter(None, parts)) for parts in zip(*wider, plate, strict=True)])
    if whole.nunique() == len(set(plate.tolist())):
        return plate
    several = whole.groupby(plate).nunique() > 1
    notes.append(
        f"{int(several.sum())} names of plates stand in several batches or sources (first: {several.idxmax()}); each "
        "is a plate of its own"
    )
    return np.where(plate == "", "", whole.to_numpy(str))


def _read(profiles: Profiles) -> ProfileTable:
    if isinstance(profiles, ProfileTable):
        return profiles
    if isinstance(profiles, pd.DataFrame):
        return profiles_of(profiles)
    paths = [profiles] if isinstance(profiles, str | Path) else list(profiles)
    if not paths:
        raise CamaeError("no profiles are given; name at least one file")
    return join_profile_tables([read_profile_table(path) for path in paths])
