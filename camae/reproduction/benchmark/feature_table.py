"""CellProfiler features told from embeddings of wells by linear regression: the paper's Figure 6."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from camae.errors import CamaeError
from camae.maps.probes import CATEGORIES, feature_regression
from camae.maps.profiles import read_profile_table

_KEYS = ["Metadata_Plate", "Metadata_Well"]
_RIDGE = 1e-3


def read_cellprofiler(path: str | Path | None) -> pd.DataFrame | None:
    """Table of CellProfiler features by well: Metadata_Plate, Metadata_Well and the features; None without a path.

    path: as `maps.read_profiles` takes it. Columns of numbers that are no features are left out with a warning.
    Raises CamaeError for a table without plates or wells, and what the reader raises.
    """
    if path is None:
        return None
    table = read_profile_table(path)
    for line in table.omitted.lines():
        warnings.warn(f"{path}: {line}", stacklevel=2)
    if missing := [key for key in _KEYS if key not in table.meta]:
        raise CamaeError(
            f"{path}: has no column {missing[0]}, so that its features cannot be matched with the screen's wells"
        )
    return pd.concat([table.meta[_KEYS], pd.DataFrame(table.x, columns=table.features)], axis=1)


def category_scores(meta: pd.DataFrame, x: np.ndarray, features: pd.DataFrame) -> pd.Series | None:
    """Median R^2 of each category of CellProfiler features, fitted on all plates but the last, tested on the last.

    meta: Metadata_Plate and Metadata_Well of the wells; x: (n, d) their embeddings; features: of `read_cellprofiler`.
    None where fewer than two plates are in both.
    """
    names = [c for c in features.columns if not c.startswith("Metadata_")]
    rows = meta[_KEYS].reset_index(drop=True).assign(row=np.arange(len(meta)))
    joined = rows.merge(features, on=_KEYS)
    plates = joined["Metadata_Plate"].to_numpy(str)
    if len(np.unique(plates)) < 2:
        return None
    last = plates == np.unique(plates)[-1]
    x = np.asarray(x, float)[joined["row"].to_numpy()]
    y = joined[names].to_numpy(float)
    r2 = feature_regression(x[~last], y[~last], x[last], y[last], names, ridge=_RIDGE)
    return r2.groupby("category")["r2"].median().reindex(CATEGORIES)
