"""Replicate pairs: for a site, another one of its perturbation in another well, of another plate where there is."""

from __future__ import annotations

import numpy as np
import pandas as pd

from camae.dataloader.manifest import Manifest
from camae.errors import CamaeError
from camae.wells import WELL

PAIR = 2  # crops


class Replicates:
    """Replicate identity of the sites of a manifest.

    label: column of the perturbation; sites where it is empty have no replicates. Wells are told apart by the columns
    Metadata_Source to Metadata_Well that there are. Raises CamaeError where a column is missing, or where no site has a
    replicate in another well.
    """

    def __init__(self, manifest: Manifest, label: str):
        table = manifest.table
        for name in (label, WELL[-1]):
            if name not in table:
                raise CamaeError(
                    f"pairs of replicates need the column {name}, which {manifest.root} does not have; it has "
                    f"{', '.join(c for c in table if c.startswith('Metadata_')) or 'no metadata'}"
                )
        self._label_N = _codes(table, [label])
        self._label_N[(table[label] == "").to_numpy()] = -1
        self._plate_N = _codes(table, [c for c in WELL[:-1] if c in table])
        self._well_N = _codes(table, [c for c in WELL if c in table])
        self._rows_of = {
            code: np.flatnonzero(self._label_N == code) for code in np.unique(self._label_N) if code >= 0
        }
        if all(len(np.unique(self._well_N[rows])) < 2 for rows in self._rows_of.values()):
            raise CamaeError(
                f"no two wells of {manifest.root} have the same {label}, so there are no pairs of replicates"
            )

    def partners(self, rows_P: np.ndarray, uniform_P: np.ndarray) -> np.ndarray:
        """(P,) int64 a replicate of each site: in another plate, else in another well, else the site itself.

        uniform_P: (P,) in [0, 1), which of those there are.
        """
        found = rows_P.copy()
        for i, (row, uniform) in enumerate(zip(rows_P.tolist(), uniform_P.tolist(), strict=True)):
            rows = self._rows_of.get(self._label_N[row])
            if rows is None:
                continue
            for group_N in (self._plate_N, self._well_N):
                others = rows[group_N[rows] != group_N[row]]
                if len(others):
                    found[i] = others[int(uniform * len(others))]
                    break
        return found

    def are_replicates(self, rows_P: np.ndarray, others_P: np.ndarray) -> np.ndarray:
        """(P,) bool, whether two sites show one perturbation in two wells."""
        same = (self._label_N[rows_P] == self._label_N[others_P]) & (self._label_N[rows_P] >= 0)
        return same & (self._well_N[rows_P] != self._well_N[others_P])


def _codes(table: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """(N,) int64, equal where rows agree in all columns."""
    if not columns:
        return np.zeros(len(table), np.int64)
    return table.groupby(columns, sort=False, dropna=False).ngroup().to_numpy().astype(np.int64)
