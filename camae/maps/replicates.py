"""Units of replication: sites (and time points) of one well are no replicates of what was done to the well.

They share the well's cells, its position and its handling, so they agree whether or not the perturbation acts.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from camae.errors import CamaeError
from camae.maps.aggregation import group_means
from camae.maps.arrays import Array
from camae.text_table import as_text
from camae.wells import WELL, normal_well

# "well": rows of one well are averaged; "site": every row counts as a replicate; None: such rows are refused.
ReplicateUnit: TypeAlias = Literal["well", "site"] | None


def well_of(meta: pd.DataFrame) -> npt.NDArray[np.intp] | None:
    """Number of the well of each row, by source, batch, plate and well; -1 without one; None without the columns."""
    if "Metadata_Well" not in meta or "Metadata_Plate" not in meta:
        return None
    text = {name: as_text(meta[name].reset_index(drop=True)) for name in WELL if name in meta}
    text["Metadata_Well"] = text["Metadata_Well"].map(normal_well)
    number = pd.MultiIndex.from_frame(pd.DataFrame(text)).factorize()[0]
    return np.where(text["Metadata_Well"] == "", -1, number)


def independent_rows(
    x: Array,
    meta: pd.DataFrame,
    same: list[str],
    unit: ReplicateUnit,
    query: npt.NDArray[np.bool_],
) -> tuple[Array, pd.DataFrame, npt.NDArray[np.bool_]]:
    """x, meta and query with at most one row of each well for each value of the columns `same`.

    unit: "well" averages the rows of a well, "site" leaves all as they are; None raises CamaeError where a well has
    several. Metadata that differs within a well becomes missing. query: booleans, a well is asked if a row of it is.
    """
    if unit not in ("well", "site", None):
        raise CamaeError(f"unknown unit '{unit}'; choose 'well' or 'site'")
    well_N = None if unit == "site" or len(meta) != x.shape[0] else well_of(meta)
    if well_N is None:
        return x, meta, query
    alone = np.where(well_N < 0, -1 - np.arange(len(well_N)), well_N)
    keys = [alone, *(pd.factorize(meta[name])[0] for name in same)]
    code = pd.MultiIndex.from_arrays(keys).factorize()[0]
    counts = np.bincount(code)
    if counts.max() < 2:
        return x, meta, query
    if unit is None:
        first, second = np.flatnonzero(code == code[(counts[code] > 1).argmax()])[:2]
        row = meta.iloc[first]
        raise CamaeError(
            f"rows {first} and {second} are of one well (plate {row['Metadata_Plate']}, well {row['Metadata_Well']}), "
            f"and {len(code):,} rows of {len(counts):,} wells in all: sites of one well are no replicates; unit='well' "
            "averages them, unit='site' counts them all the same"
        )
    order = np.argsort(code, kind="stable")
    members = np.split(order, np.cumsum(counts)[:-1])
    firsts = np.array([index[0] for index in members])
    averaged = meta.iloc[firsts].copy()
    for name in meta.columns:
        value = pd.factorize(meta[name])[0]
        mixed = np.array([(value[index] != value[index[0]]).any() for index in members])
        if mixed.any():
            averaged[name] = averaged[name].astype(object).where(~mixed, None)
    asked = np.array([bool(query[index].any()) for index in members])
    return group_means(x, members), averaged, asked
