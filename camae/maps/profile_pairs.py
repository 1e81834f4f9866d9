"""Positive and negative pairs of profiles, found from metadata columns.

The rules are those of copairs. A positive pair has the same value in every `pos_sameby` column and different values
in every `pos_diffby` column; a negative pair likewise with `neg_sameby` and `neg_diffby`. A missing value is neither
the same as nor different from anything. A multi-label column holds labels joined by a separator: two profiles are the
same when they share the label asked for, different when they share none.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from camae.errors import CamaeError
from camae.maps.arrays import Array
from camae.maps.inputs import check_metadata

# Names of metadata columns; one may stand alone. {"all": columns, "any": columns}: all of the first and one of the
# second. Among the names, an expression such as "Metadata_Dose == '10'" leaves only the rows that it holds for.
Columns: TypeAlias = Sequence[str] | str | Mapping[str, Sequence[str] | str]
_COMPARISONS = re.compile(r"[<>=!]|\b(?:not )?in\b")


@dataclass(frozen=True)
class PairRules:
    """Rules of positive and negative pairs, as columns of the metadata, and the column that holds several labels.

    pos_same_any and its like: of these columns one has to agree (differ). filters: expressions of the rows used.
    """

    pos_sameby: list[str]
    pos_diffby: list[str]
    neg_sameby: list[str]
    neg_diffby: list[str]
    multilabel: str | None = None
    separator: str = "|"
    pos_same_any: list[str] = field(default_factory=list)
    pos_diff_any: list[str] = field(default_factory=list)
    neg_same_any: list[str] = field(default_factory=list)
    neg_diff_any: list[str] = field(default_factory=list)
    filters: list[str] = field(default_factory=list)

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
        check_metadata(meta)
        filters: list[str] = []
        every, one = zip(
            _all_and_any(meta, pos_sameby, "pos_sameby", filters),
            _all_and_any(meta, pos_diffby, "pos_diffby", filters),
            _all_and_any(meta, neg_sameby, "neg_sameby", filters),
            _all_and_any(meta, neg_diffby, "neg_diffby", filters),
            strict=True,
        )
        columns(meta, [] if multilabel is None else [multilabel], "multilabel")
        rules = cls(*every, multilabel, separator, *one, filters)
        if not every[0] + one[0] or not every[2] + one[2] + every[3] + one[3]:
            raise CamaeError(
                "pos_sameby, and one of neg_sameby and neg_diffby, must name at least one column"
            )
        if any(multilabel in names for names in one):
            raise CamaeError(
                f"the multilabel column '{multilabel}' stands under 'any'; name it under 'all', or give one label a row"
            )
        if multilabel is not None and multilabel not in every[0] + every[3]:
            raise CamaeError(
                f"the multilabel column '{multilabel}' stands neither in pos_sameby nor in neg_diffby, where its "
                "labels would be read; name it there, or leave multilabel out"
            )
        return rules

    def rows(self, meta: pd.DataFrame) -> npt.NDArray[np.intp]:
        """Rows of meta that all filters hold for. Raises CamaeError for a filter that fails or leaves no row."""
        if not self.filters:
            return np.arange(len(meta))
        text = " and ".join(f"({expression})" for expression in self.filters)
        try:
            # Without names from the caller's program: only columns can be compared.
            kept = (
                meta.reset_index(drop=True).query(text, local_dict={}, global_dict={}).index.to_numpy(np.intp)
            )
        except Exception as error:  # pandas raises whatever the expression comes to
            raise CamaeError(f"the filter {text} cannot be evaluated on the metadata: {error}") from None
        if len(kept) == 0:
            raise CamaeError(f"the filter {text} leaves none of the {len(meta)} rows")
        return kept


def _all_and_any(
    meta: pd.DataFrame, names: Columns | None, what: str, filters: list[str]
) -> tuple[list[str], list[str]]:
    """Columns of which all, and of which one has to match; expressions go to `filters`."""
    if not isinstance(names, Mapping):
        return columns(meta, _without_filters(meta, names, what, filters), what), []
    if unknown := set(names) - {"all", "any"}:
        raise CamaeError(f"{what} has the key '{sorted(unknown)[0]}'; give columns under 'all' and 'any'")
    every, one = (_without_filters(meta, names.get(key), what, filters) for key in ("all", "any"))
    return columns(meta, every, what), columns(meta, one, what)


def _without_filters(
    meta: pd.DataFrame, names: Sequence[str] | str | None, what: str, filters: list[str]
) -> list[str]:
    """The names that are no expressions; those that are go to `filters`."""
    listed = _names(names, what)
    found = [name for name in listed if name not in meta.columns and _COMPARISONS.search(str(name))]
    filters += [name for name in found if name not in filters]
    return [name for name in listed if name not in found]


def _names(names: Sequence[str] | str | None, what: str) -> list[str]:
    """`names` as a list. Raises CamaeError for what is neither one name nor a sequence of them."""
    if names is None or isinstance(names, str):
        return [] if names is None else [names]
    listed = list(names) if isinstance(names, Iterable) else [names]
    if not isinstance(names, Iterable) or not all(isinstance(name, Hashable) for name in listed):
        raise CamaeError(f"{what} is a {type(names).__name__}; give the name of a column, or a list of names")
    return listed


def columns(meta: pd.DataFrame, names: Sequence[str] | str | None, what: str) -> list[str]:
    """`names` as a list of columns of meta. Raises CamaeError for a column that is not there."""
    listed = _names(names, what)
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
    same_any = [codes_of_named(meta[name]) for name in rules.pos_same_any]
    differ_any = [codes(meta[name]) for name in rules.pos_diff_any]
    found: list[tuple[int, str, np.ndarray]] = []
    order = np.argsort(group, kind="stable")
    order = order[group[order] >= 0]
    for entries in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        others = member[entries]
        for entry in entries[query[others]]:
            row = member[entry]
            kept = others != row
            for code_N in differ:
                kept &= _differs(code_N, row, others)
            if same_any:
                kept &= np.any([_agrees(code_N, row, others) for code_N in same_any], axis=0)
            if differ_any:
                kept &= np.any([_differs(code_N, row, others) for code_N in differ_any], axis=0)
            if kept.any():
                found.append((row, label[entry], others[kept]))
    if not found:
        raise CamaeError(
            f"no profile has a positive pair: no two rows share {_listed(rules.pos_sameby, rules.pos_same_any)}"
            + (
                f" and differ in {_listed(rules.pos_diffby, rules.pos_diff_any)}"
                if rules.pos_diffby + rules.pos_diff_any
                else ""
            )
            + "; a perturbation needs at least two replicates"
        )
    found.sort(key=lambda entry: entry[0])
    positive = np.full((len(found), max(len(entry[2]) for entry in found)), -1, dtype=np.int64)
    for i, (_, _, members) in enumerate(found):
        positive[i, : len(members)] = members
    return Queries(np.array([f[0] for f in found]), np.array([f[1] for f in found], dtype=object), positive)


def _agrees(code_N: np.ndarray, row: int, others: np.ndarray) -> npt.NDArray[np.bool_]:
    """Whether the value of `row` is that of each of the others; a missing one is not."""
    return (code_N[others] == code_N[row]) & (code_N[row] >= 0)


def _differs(code_N: np.ndarray, row: int, others: np.ndarray) -> npt.NDArray[np.bool_]:
    """Whether the value of `row` is another than that of each of the others; a missing one is not."""
    return (code_N[others] != code_N[row]) & (code_N[others] >= 0) & (code_N[row] >= 0)


def _listed(every: list[str], one: list[str]) -> str:
    """ "['a', 'b'] and any of ['c', 'd']", for messages."""
    return " and ".join([str(every)] * bool(every) + [f"any of {one}"] * bool(one))


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
        self.same_any: list[Array] = [xp.asarray(codes_of_named(meta[name])) for name in rules.neg_same_any]
        self.different_any: list[Array] = [xp.asarray(codes(meta[name])) for name in rules.neg_diff_any]
        self.labels: Array | None = None
        if rules.multilabel in rules.neg_diffby:
            self.labels = xp.asarray(membership(meta[rules.multilabel], rules.separator)[1])

    def mask(self, profile: Array) -> Array:
        """Booleans (queries, n): which rows are negatives of the rows `profile` (device indices)."""
        out = self.xp.arange(self.count)[None] != profile[:, None]
        for code in self.same:
            out &= self._agree(code, profile)
        for code in self.different:
            out &= self._differ(code, profile)
        if self.same_any:
            out &= self._one_of([self._agree(code, profile) for code in self.same_any])
        if self.different_any:
            out &= self._one_of([self._differ(code, profile) for code in self.different_any])
        if self.labels is not None:
            out &= self.labels[profile] @ self.labels.T == 0
            labeled = self.xp.any(self.labels, axis=1)
            out &= labeled[None] & labeled[profile][:, None]
        return out

    @staticmethod
    def _agree(code: Array, profile: Array) -> Array:
        own = code[profile][:, None]
        agree: Array = (code[None] == own) & (own >= 0)
        return agree

    @staticmethod
    def _differ(code: Array, profile: Array) -> Array:
        own = code[profile][:, None]
        differ: Array = (code[None] != own) & (own >= 0) & (code[None] >= 0)
        return differ

    @staticmethod
    def _one_of(masks: list[Array]) -> Array:
        found = masks[0]
        for other in masks[1:]:
            found = found | other
        return found
