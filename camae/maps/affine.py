"""The one shape every alignment has: per batch, y = (x - offset) @ matrix (or * scale), learned in fp64.

`Alignment` holds what was learned and applies it; the methods (`camae.maps.alignment`) only differ in `_learn`.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from camae.errors import CamaeError
from camae.maps.arrays import embeddings, groups, labels, listing, mask, namespace, rows

EVERY = ""  # the batch label of a map that holds for all rows


@dataclass
class LowRank:
    """The symmetric factor level I + axes_KR diag(gain_R) axes_KR': a batch's whitening, learned from R < K rows."""

    level: float
    axes: Any
    gain: Any

    def right_of(self, matrix: Any) -> Any:
        """matrix @ factor."""
        return matrix * self.level + ((matrix @ self.axes) * self.gain) @ self.axes.T


@dataclass
class Affine:
    """y = (x - offset_D) @ matrix_DK, or * matrix_D when one-dimensional, then @ factor where there is one.

    fp64, in the namespace of fit's x. Batches share one matrix_DK object and differ in the small factor, so that
    thousands of plates fit in memory.
    """

    offset: Any
    matrix: Any
    factor: LowRank | None = None

    def __call__(self, x: Any) -> Any:
        xp = namespace(x)
        offset = xp.asarray(self.offset, dtype=x.dtype)
        centered = x - offset
        if self.matrix.ndim == 1:
            centered *= xp.asarray(self.matrix, dtype=x.dtype)
            return centered
        if self.factor is None:
            return centered @ xp.asarray(self.matrix, dtype=x.dtype)
        level, axes, gain = self.factor.level, xp.asarray(self.factor.axes), xp.asarray(self.factor.gain)
        matrix = xp.asarray(self.matrix)
        if x.shape[0] > matrix.shape[0] // 2:  # folding the factor into the matrix costs less than using it
            return centered @ LowRank(level, axes, gain).right_of(matrix).astype(x.dtype)
        return LowRank(level, axes.astype(x.dtype), gain.astype(x.dtype)).right_of(
            centered @ matrix.astype(x.dtype)
        )


@dataclass
class Alignment(abc.ABC):
    """Fit on one table, transform others. `maps_`: batch label -> Affine; `rank_`: columns of the output.

    Subclasses are dataclasses; their fields are the method's options.
    """

    method: ClassVar[str] = ""

    def __post_init__(self) -> None:
        self.maps_: dict[str, Affine] = {}
        self.rank_: int = 0

    @abc.abstractmethod
    def _learn(
        self, x: Any, batch: np.ndarray | None, control: np.ndarray | None
    ) -> Iterator[tuple[str, Affine]]:
        """Yield (batch label, map) one by one. x: (n, d), in fp32 or fp64; batch: n labels; control: n booleans."""

    def fit(self, x: Any, batch: Any = None, control: Any = None) -> Alignment:
        """Learn the maps from x (n, d). batch: n labels; control: n booleans. Returns self.

        Raises CamaeError for rows that are not finite, labels of another length, a missing or too small control
        set.
        """
        x = embeddings(x)
        self.maps_ = dict(self._learn(x, *_arguments(x, batch, control)))
        return self

    def transform(self, x: Any, batch: Any = None) -> Any:
        """x (n, d) mapped to (n, rank_), same namespace and dtype (fp64 in, fp64 out).

        Raises CamaeError when not fitted, when the features differ in number, or for a batch unseen at fit.
        """
        if not self.maps_:
            raise CamaeError(f"{type(self).__name__} is not fitted; call fit(x, batch=, control=) first.")
        x = embeddings(x)
        first = next(iter(self.maps_.values()))
        if x.shape[1] != first.offset.shape[0]:
            raise CamaeError(
                f"The aligner was fitted on {first.offset.shape[0]} features, x has {x.shape[1]}."
            )
        if EVERY in self.maps_:
            return self.maps_[EVERY](x)
        if batch is None:
            raise CamaeError(f"{self.method} was fitted by batch; give batch= for the rows to transform.")
        names, members = groups(labels(batch, x.shape[0], "batch"))
        unseen = [name for name in names.tolist() if name not in self.maps_]
        if unseen:
            raise CamaeError(
                f"Batch {listing(unseen)} was not seen when the aligner was fitted; fit again with its controls."
            )
        out = namespace(x).empty((x.shape[0], self.rank_), dtype=x.dtype)
        for name, index in zip(names.tolist(), members, strict=True):
            out[namespace(x).asarray(index)] = self.maps_[name](rows(x, index))
        return out

    def fit_transform(self, x: Any, batch: Any = None, control: Any = None) -> Any:
        """fit(...).transform(...) of the same table, without keeping more than one batch's map at a time."""
        x = embeddings(x)
        batch_N, control_N = _arguments(x, batch, control)
        xp, out = namespace(x), None
        members = {}
        if batch_N is not None:
            names, index = groups(batch_N)
            members = dict(zip(names.tolist(), index, strict=True))
        for name, affine in self._learn(x, batch_N, control_N):
            if name == EVERY:
                return affine(x)
            if out is None:
                out = xp.empty((x.shape[0], self.rank_), dtype=x.dtype)
            out[xp.asarray(members[name])] = affine(rows(x, members[name]))
        return out


def _arguments(x: Any, batch: Any, control: Any) -> tuple[np.ndarray | None, np.ndarray | None]:
    n = x.shape[0]
    return (
        None if batch is None else labels(batch, n, "batch"),
        None if control is None else mask(control, n, "control"),
    )


def fit_rows(
    x: Any, batch: np.ndarray | None, control: np.ndarray | None, needed: int
) -> Iterator[tuple[str, np.ndarray]]:
    """(batch, rows to fit on) for each batch; CamaeError when a batch has fewer than `needed`."""
    kind = "rows" if control is None else "negative controls"
    if control is not None and not control.any():
        raise CamaeError("No row is marked as a negative control; check the control= mask.")
    if batch is None:
        names, members = np.array([EVERY]), [np.arange(x.shape[0])]
    else:
        names, members = groups(batch)
    chosen = [index if control is None else index[control[index]] for index in members]
    for name, index in zip(names.tolist(), chosen, strict=True):
        if len(index) < needed:
            where = f"Batch '{name}'" if name != EVERY else "The table"
            raise CamaeError(
                f"{where} has {len(index)} {kind}, at least {needed} are needed; leave the batch out, or align "
                "by a larger unit such as the experiment."
            )
    yield from zip(names.tolist(), chosen, strict=True)
