"""Which profiles are positives and negatives of which query, from metadata columns.

The rules are those users of copairs know: a positive pair has the same value in every `pos_sameby` column and
different values in every `pos_diffby` column; a negative pair likewise with `neg_sameby` and `neg_diffby`. A
missing value is neither the same as nor different from anything. A multi-label column holds labels joined by a
separator: two profiles are the same when they share the label asked for, different when they share none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from camae.errors import CamaeError


def columns(meta: pd.DataFrame, names: Sequence[str] | str | None, what: str) -> list[str]:
    """`names` as a list of columns of meta. Raises CamaeError for a column that is not there."""
    listed = [names] if isinstance(names, str) else list(names or [])
    for name in listed:
        if name not in meta.columns:
            raise CamaeError(f"{what} names the column '{name}', which the metadata lacks.")
    return listed


def codes(column: pd.Series) -> np.ndarray:
    """Integers that are equal where the values are; -1 where missing."""
    return pd.factorize(column)[0].astype(np.int32)


def membership(column: pd.Series, separator: str) -> tuple[list[str], np.ndarray]:
    """Labels of a multi-label column and the 0/1 matrix (profiles, labels) in fp32; missing has no labels."""
    listed = [[] if pd.isna(v) else [part for part in str(v).split(separator) if part] for v in column]
    names = sorted({label for row in listed for label in row})
    at = {label: i for i, label in enumerate(names)}
    matrix = np.zeros((len(listed), len(names)), dtype=np.float32)
    for i, row in enumerate(listed):
        matrix[i, [at[label] for label in row]] = 1
    return names, matrix


@dataclass
class Queries:
    """profile_Q: the row that asks; label_Q: the label it asks for ("" without a multi-label column);
    positive_QK: rows that are its positives, padded with -1."""

    profile: np.ndarray
    label: np.ndarray
    positive: np.ndarray


def find_queries(
    meta: pd.DataFrame,
    pos_sameby: list[str],
    pos_diffby: list[str],
    query: np.ndarray,
    multilabel: str | None,
    separator: str,
) -> Queries:
    """Every (row, label) of `query` rows that has at least one positive, ordered by row."""
    n = len(meta)
    single = [name for name in pos_sameby if name != multilabel]
    member, label = np.arange(n), np.full(n, "", dtype=object)
    if multilabel in pos_sameby:
        names, matrix = membership(meta[multilabel], separator)
        member, at = np.nonzero(matrix)
        label = np.array(names, dtype=object)[at]
    code = np.stack([codes(meta[name])[member] for name in single] + [pd.factorize(label)[0]], axis=1)
    present = (code >= 0).all(axis=1)
    group = pd.factorize(pd.MultiIndex.from_arrays(code.T))[0]
    group[~present] = -1
    differ = [codes(meta[name]) for name in pos_diffby]
    found: list[tuple[int, Any, np.ndarray]] = []
    order = np.argsort(group, kind="stable")
    order = order[group[order] >= 0]
    for entries in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        others = member[entries]
        for entry in entries[query[others]]:
            row = member[entry]
            kept = others != row
            for code_N in differ:
                kept &= (code_N[others] != code_N[row]) & (code_N[others] >= 0) & (code_N[row] >= 0)
            if kept.any():
                found.append((row, label[entry], others[kept]))
    if not found:
        raise CamaeError(
            f"No profile has a positive pair: no two rows share {pos_sameby}"
            + (f" and differ in {pos_diffby}" if pos_diffby else "")
            + "; a perturbation needs at least two replicates."
        )
    found.sort(key=lambda entry: entry[0])
    positive = np.full((len(found), max(len(entry[2]) for entry in found)), -1, dtype=np.int64)
    for i, (_, _, rows_) in enumerate(found):
        positive[i, : len(rows_)] = rows_
    return Queries(np.array([f[0] for f in found]), np.array([f[1] for f in found], dtype=object), positive)


class Negatives:
    """The negative-pair rule as a mask for blocks of queries, in the namespace of the embeddings."""

    def __init__(
        self,
        xp: Any,
        meta: pd.DataFrame,
        neg_sameby: list[str],
        neg_diffby: list[str],
        multilabel: str | None,
        separator: str,
    ) -> None:
        self.xp = xp
        self.same = [xp.asarray(codes(meta[name])) for name in neg_sameby]
        self.different = [xp.asarray(codes(meta[name])) for name in neg_diffby if name != multilabel]
        self.labels = None
        if multilabel in neg_diffby:
            self.labels = xp.asarray(membership(meta[multilabel], separator)[1])

    def mask(self, profile: Any) -> Any:
        """Booleans (queries, n): which rows are negatives of the rows `profile` (device indices)."""
        xp = self.xp
        n = len((self.same or self.different or [self.labels])[0])
        out = xp.arange(n)[None] != profile[:, None]
        for code in self.same:
            out &= (code[None] == code[profile][:, None]) & (code[profile] >= 0)[:, None]
        for code in self.different:
            out &= code[None] != code[profile][:, None]
            out &= ((code[profile] >= 0)[:, None]) & (code >= 0)[None]
        if self.labels is not None:
            out &= self.labels[profile] @ self.labels.T == 0
            out &= (self.labels.any(axis=1))[None] & self.labels[profile].any(axis=1)[:, None]
        return out
