"""Positive and negative pairs of profiles, found from metadata columns.

The rules are those of copairs. A positive pair has the same value in every `pos_sameby` column and different values
in every `pos_diffby` column; a negative pair likewise with `neg_sameby` and `neg_diffby`. A missing value is neither
the same as nor different from anything. A multi-label column holds labels joined by a separator: two profiles are the
same when they share the label asked for, different when they share none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from camae.errors import CamaeError
from camae.maps.arrays import Array

Columns: TypeAlias = Sequence[str] | str  # names of metadata columns; one may stand alone


@dataclass(frozen=True)
class PairRules:
    """Rules of positive and negative pairs, as columns of the metadata, and the column that holds several labels."""

    pos_sameby: list[str]
    pos_diffby: list[str]
    neg_sameby: list[str]
    neg_diffby: list[str]
    multilabel: str | None = None
    separator: str = "|"

    @classmethod
    def of(
        cls,
        meta: pd.DataFrame,
        pos_sameby: Columns,
        pos_diffby: Columns,
        neg_sameby: Columns,
        neg_diffby: Columns,
        multilabel: str | None,
        separator: str,
    ) -> PairRules:
        """Rules as a user gives them. Raises CamaeError for a column that meta lacks, or no columns."""
        rules = cls(
            columns(meta, pos_sameby, "pos_sameby"),
            columns(meta, pos_diffby, "pos_diffby"),
            columns(meta, neg_sameby, "neg_sameby"),
            columns(meta, neg_diffby, "neg_diffby"),
            multilabel,
            separator,
        )
        if not rules.pos_sameby or not (rules.neg_sameby or rules.neg_diffby):
            raise CamaeError(
                "pos_sameby, and one of neg_sameby and neg_diffby, must name at least one column"
            )
        return rules


def columns(meta: pd.DataFrame, names: Columns | None, what: str) -> list[str]:
    """`names` as a list of columns of meta. Raises CamaeError for a column that is not there."""
    listed = [names] if isinstance(names, str) else list(names or [])
    for name in listed:
        if name not in meta.columns:
            raise CamaeError(f"{what} names the column '{name}', which the metadata lacks")
    return listed


def codes(column: pd.Series) -> npt.NDArray[np.int32]:
    """Integers that are equal where the values are; -1 where missing."""
    return pd.factorize(column)[0].astype(np.int32)


def codes_of_named(column: pd.Series) -> npt.NDArray[np.int32]:
    """`codes`, with -1 where the text is "" as well: two rows without a name are not the same."""
    code = codes(column)
    return code if pd.api.types.is_numeric_dtype(column) else np.where(column == "", np.int32(-1), code)


def membership(column: pd.Series, separator: str) -> tuple[list[str], npt.NDArray[np.float32]]:
    """Labels of a multi-label column and the 0/1 matrix (profiles, labels); a missing value has no labels."""
    listed = [[] if pd.isna(v) else [part for part in str(v).split(separator) if part] for v in column]
    names = sorted({label for row in listed for label in row})
    at = {label: i for i, label in enumerate(names)}
    matrix = np.zeros((len(listed), len(names)), dtype=np.float32)
    for i, row in enumerate(listed):
        matrix[i, [at[label] for label in row]] = 1
    return names, matrix


@dataclass
class Queries:
    """Queries (Q,) and their positives.

    profile: the row that asks; label: the label it asks for ("" without a multi-label column); positive (Q, K): rows
    that are its positives, padded with -1.
    """

    profile: npt.NDArray[np.int64]
    label: npt.NDArray[np.object_]
    positive: npt.NDArray[np.int64]


def find_queries(meta: pd.DataFrame, rules: PairRules, query: npt.NDArray[np.bool_]) -> Queries:
    """Every (row, label) of the `query` rows that has at least one positive, ordered by row."""
    member, label, group = _entries(meta, rules)
    differ = [codes(meta[name]) for name in rules.pos_diffby]
    found: list[tuple[int, str, np.ndarray]] = []
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
            f"no profile has a positive pair: no two rows share {rules.pos_sameby}"
            + (f" and differ in {rules.pos_diffby}" if rules.pos_diffby else "")
            + "; a perturbation needs at least two replicates"
        )
    found.sort(key=lambda entry: entry[0])
    positive = np.full((len(found), max(len(entry[2]) for entry in found)), -1, dtype=np.int64)
    for i, (_, _, members) in enumerate(found):
        positive[i, : len(members)] = members
    return Queries(np.array([f[0] for f in found]), np.array([f[1] for f in found], dtype=object), positive)


def _entries(meta: pd.DataFrame, rules: PairRules) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, label) entries by the rule pos_sameby: the row, the label asked for, and the group that shares both.

    Rows enter once, or once for each of their labels when pos_sameby holds the multi-label column. The group is -1
    where a value is missing.
    """
    single = [name for name in rules.pos_sameby if name != rules.multilabel]
    member, label = np.arange(len(meta)), np.full(len(meta), "", dtype=object)
    if rules.multilabel in rules.pos_sameby:
        names, matrix = membership(meta[rules.multilabel], rules.separator)
        member, at = np.nonzero(matrix)
        label = np.array(names, dtype=object)[at]
    code = np.stack(
        [codes_of_named(meta[name])[member] for name in single] + [pd.factorize(label)[0]], axis=1
    )
    group = pd.factorize(pd.MultiIndex.from_arrays(code.T))[0]
    group[~(code >= 0).all(axis=1)] = -1
    return member, label, group


class Negatives:
    """Rule of negative pairs as a mask for blocks of queries, in the namespace of the embeddings."""

    def __init__(self, xp: ModuleType, meta: pd.DataFrame, rules: PairRules) -> None:
        self.xp = xp
        self.count = len(meta)
        self.same: list[Array] = [xp.asarray(codes_of_named(meta[name])) for name in rules.neg_sameby]
        self.different: list[Array] = [
            xp.asarray(codes(meta[name])) for name in rules.neg_diffby if name != rules.multilabel
        ]
        self.labels: Array | None = None
        if rules.multilabel in rules.neg_diffby:
            self.labels = xp.asarray(membership(meta[rules.multilabel], rules.separator)[1])

    def mask(self, profile: Array) -> Array:
        """Booleans (queries, n): which rows are negatives of the rows `profile` (device indices)."""
        out = self.xp.arange(self.count)[None] != profile[:, None]
        for code in self.same:
            own = code[profile][:, None]
            out &= (code[None] == own) & (own >= 0)
        for code in self.different:
            own = code[profile][:, None]
            out &= (code[None] != own) & (own >= 0) & (code[None] >= 0)
        if self.labels is not None:
            out &= self.labels[profile] @ self.labels.T == 0
            labeled = self.xp.any(self.labels, axis=1)
            out &= labeled[None] & labeled[profile][:, None]
        return out
