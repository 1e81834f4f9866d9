"""Left joins of tables that say what they matched: platemaps, barcodes, metadata and gene tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from camae.errors import CamaeError
from camae.wells import known_column, spelled


@dataclass(frozen=True)
class Match:
    """Result of a join: matched rows of both sides, and the first row of each that found none ("" for none)."""

    what: str
    on: tuple[str, ...]
    left_matched: int
    left_total: int
    right_matched: int
    right_total: int
    left_over: str
    right_over: str

    def __str__(self) -> str:
        first = f", not {self.left_over}" if self.left_over else ""
        return (
            f"{self.what}: {self.left_matched:,} of {self.left_total:,} rows matched{first}, with "
            f"{self.right_matched:,} of its {self.right_total:,} rows, by {' and '.join(self.on)}"
        )


def joined(
    left: pd.DataFrame, right: pd.DataFrame, on: Sequence[str], what: str
) -> tuple[pd.DataFrame, Match]:
    """Left join of text tables on equal columns; cells are compared in one spelling, empty cells match nothing.

    what: names the right table in errors and in the Match.
    Returns `left` in its order with the other columns of `right`, "" where nothing matched, and what matched.
    Raises CamaeError when `right` has two rows for one key, or no row of either side matches.
    """
    on = tuple(on)
    left = left.reset_index(drop=True)
    right = right.assign(**{c: spelled(right[c], _spelled_as(c)) for c in on})
    right = right[(right[list(on)] != "").all(axis=1)].drop_duplicates().reset_index(drop=True)
    repeated = right[right.duplicated(list(on), keep=False)]
    if len(repeated):
        raise CamaeError(
            f"{what}: has several rows for {_words(repeated.iloc[0], on)} that differ in {_differing(repeated, on)}"
        )
    keys = left[list(on)].assign(**{c: spelled(left[c], _spelled_as(c)) for c in on})
    places = keys.merge(right[list(on)].assign(_row=range(len(right))), on=list(on), how="left")["_row"]
    matched = places.notna() & (keys != "").all(axis=1)
    used = set(places[matched].astype(int))
    over = [i for i in range(len(right)) if i not in used][:1]
    match = Match(
        what,
        on,
        int(matched.sum()),
        len(left),
        len(used),
        len(right),
        "" if matched.all() else _words(keys[~matched].iloc[0], on),
        _words(right.iloc[over[0]], on) if over else "",
    )
    if len(left) and not match.left_matched:
        its = f"its first is {match.right_over}" if len(right) else "it has none with a name"
        raise CamaeError(
            f"{what}: no row matches by {' and '.join(on)}: {its}, the first wanted is {match.left_over}"
        )
    new = [c for c in right.columns if c not in on]
    found = right[new].reindex(places.where(matched, -1).astype(int)).fillna("")
    found.index = left.index
    return pd.concat([left.drop(columns=[c for c in new if c in left]), found], axis=1), match


def _spelled_as(column: str) -> str:
    """Column whose spelling its cells have: also "well_position" holds wells."""
    return "Metadata_Well" if "well" in column.lower() else known_column(column)


def _words(row: pd.Series, on: Sequence[str]) -> str:
    return ", ".join(f"{c.removeprefix('Metadata_')} {row[c]!r}" for c in on)


def _differing(rows: pd.DataFrame, on: Sequence[str]) -> str:
    first = rows[(rows[list(on)] == rows.iloc[0][list(on)]).all(axis=1)]
    return next(str(c) for c in rows.columns if c not in on and first[c].nunique() > 1)
