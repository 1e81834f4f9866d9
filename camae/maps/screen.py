"""From a table of wells to one vector per perturbation, as every map, recall and report starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from camae.errors import CamaeError, MissingFileError
from camae.maps.aggregation import aggregate, perturbation_names
from camae.maps.alignment import align
from camae.tables import features_of, read_table

Pair = tuple[str, str]


@dataclass(frozen=True)
class ScreenMap:
    """vectors: (n, k), one row per perturbation, origin at the negative controls. names: (n,) in that order."""

    vectors: np.ndarray
    names: np.ndarray


def map_screen(
    wells: pd.DataFrame | str | Path,
    method: str = "tvn",
    *,
    batch: str = "Metadata_Plate",
    perturbation: str = "Metadata_Perturbation",
    control: str = "Metadata_control_type",
    **options,
) -> ScreenMap:
    """Align wells by plate on the negative controls, then take the spherical mean of every perturbation.

    wells: table with `Metadata_*` and feature columns, or its Parquet file. control: column that says "negcon".
    Raises CamaeError when a needed column or the controls are missing.
    """
    table = wells if isinstance(wells, pd.DataFrame) else read_table(wells)[0]
    for column in (batch, perturbation, control):
        if column not in table:
            raise CamaeError(
                f"the table of wells has no column {column}; a map needs plate, perturbation and controls"
            )
    is_control = (table[control] == "negcon").to_numpy(bool)
    if not is_control.any():
        raise CamaeError(f"no well is a negative control: {control} says 'negcon' nowhere")
    named = ~is_control & (table[perturbation] != "").to_numpy(bool)
    z = align(features_of(table), method, batch=table[batch].to_numpy(str), control=is_control, **options)
    by = table[perturbation].to_numpy(str)[named]
    vectors = aggregate(z[named], by=by, method="spherical_mean", origin=z[is_control].mean(0))
    return ScreenMap(vectors, perturbation_names(by))


def read_pairs(path: str | Path) -> list[Pair]:
    """Known pairs from a CSV or tab-separated file: its first two columns, with a header."""
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file of known pairs")
    table = pd.read_csv(path, sep=None, engine="python", dtype=str, keep_default_na=False)
    if table.shape[1] < 2:
        raise CamaeError(f"{path}: needs two columns of perturbation names, found {list(table.columns)}")
    return list(zip(table.iloc[:, 0], table.iloc[:, 1], strict=True))
