"""Alignment: the base of all batch corrections, an affine map learned for each batch.

Every method maps a row x of batch b to (x - offset_b) @ matrix_b, or to (x - offset_b) * scale_b. `Alignment` holds
what was learned and applies it; the methods (`camae.maps.alignment`) only differ in how they learn the maps. Fitted
in fp64, applied in the precision of the table.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from camae.errors import CamaeError
from camae.maps.arrays import Array, Labels, Mask, groups, namespace, rows
from camae.maps.inputs import control_rows, embeddings, labels, listing, mask

EVERY = ""  # the batch label of a map that holds for all rows


@dataclass
class LowRank:
    """Symmetric whitening factor level I + axes_KR diag(gain_R) axes_KR', learned from R < K rows of a batch."""

    level: float
    axes: Array
    gain: Array

    def right_of(self, matrix: Array) -> Array:
        """matrix @ factor."""
        return matrix * self.level + ((matrix @ self.axes) * self.gain) @ self.axes.T


@dataclass
class Affine:
    """Affine map (x - offset_D) @ matrix_DK, or * matrix_D when one-dimensional, then @ factor where there is one.

    fp64, in the namespace of fit's x. Batches share one matrix_DK object and differ in the small factor, so that
    thousands of plates fit in memory.
    """

    offset: Array
    matrix: Array
    factor: LowRank | None = None

    def __call__(self, x: Array) -> Array:
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


BatchMaps: TypeAlias = Iterator[tuple[str, Affine]]  # (batch label, its map), one by one


@dataclass
class Alignment(abc.ABC):
    """Batch correction with an estimator interface: fit on one table, transform others.

    Subclasses are dataclasses; their fields are the options of the method.

    Attributes
    ----------
    maps_ : dict of str to Affine
        The learned map of each batch; the key "" holds for all rows.
    rank_ : int
        Columns of the output: the number of dimensions that were kept.
    """

    method: ClassVar[str] = ""

    def __post_init__(self) -> None:
        self.maps_: dict[str, Affine] = {}
        self.rank_: int = 0

    @abc.abstractmethod
    def _learn(self, x: Array, batch: npt.NDArray | None, control: npt.NDArray | None) -> BatchMaps:
        """Yield (batch label, map) one by one. x: (n, d), in fp32 or fp64; batch: n labels; control: n booleans."""

    def fit(self, x: Array, batch: Labels | None = None, control: Mask | None = None) -> Alignment:
        """Learn the maps.

        Parameters
        ----------
        x : (n, d) array
            Embeddings, NumPy or CuPy, floating point.
        batch : n labels, optional
            Plate or experiment of each row. Without it one map is learned for all rows.
        control : n booleans, optional
            True for negative controls; the maps are then learned on these rows alone.

        Returns
        -------
        Alignment
            This object.

        Raises
        ------
        CamaeError
            For rows that are not finite, labels of another length, a missing or too small control set.
        """
        x = embeddings(x)
        self.maps_ = dict(self._learn(x, *_arguments(x, batch, control)))
        return self

    def transform(self, x: Array, batch: Labels | None = None) -> Array:
        """Apply the learned maps.

        Parameters
        ----------
        x : (n, d) array
            Embeddings with the features of `fit`, NumPy or CuPy.
        batch : n labels, optional
            Needed when the maps were learned by batch.

        Returns
        -------
        (n, rank_) array
            In x's namespace and dtype.

        Raises
        ------
        CamaeError
            When not fitted, when the features differ in number, or for a batch unseen at fit.
        """
        if not self.maps_:
            raise CamaeError(f"{type(self).__name__} is not fitted; call fit(x, batch=, control=) first")
        x = embeddings(x)
        first = next(iter(self.maps_.values()))
        if x.shape[1] != first.offset.shape[0]:
            raise CamaeError(
                f"the aligner was fitted on {first.offset.shape[0]} features, x has {x.shape[1]}"
            )
        if EVERY in self.maps_:
            return self.maps_[EVERY](x)
        if batch is None:
            raise CamaeError(f"{self.method} was fitted by batch; give batch= for the rows to transform")
        names, members = groups(labels(batch, x.shape[0], "batch"))
        unseen = [name for name in names.tolist() if name not in self.maps_]
        if unseen:
            raise CamaeError(
                f"batch {listing(unseen)} was not seen when the aligner was fitted; fit again with its controls"
            )
        out = namespace(x).empty((x.shape[0], self.rank_), dtype=x.dtype)
        for name, index in zip(names.tolist(), members, strict=True):
            out[namespace(x).asarray(index)] = self.maps_[name](rows(x, index))
        return out

    def fit_transform(self, x: Array, batch: Labels | None = None, control: Mask | None = None) -> Array:
        """`fit` and `transform` of the same table, without keeping more than one batch's map at a time.

        Parameters, result and errors are those of `fit` and `transform`.
        """
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
        assert out is not None  # every method yields at least one batch
        return out


def _arguments(
    x: Array, batch: Labels | None, control: Mask | None
) -> tuple[npt.NDArray | None, npt.NDArray | None]:
    n = x.shape[0]
    return (
        None if batch is None else labels(batch, n, "batch"),
        None if control is None else mask(control, n, "control"),
    )


def fit_rows(
    x: Array, batch: npt.NDArray | None, control: npt.NDArray | None, needed: int
) -> Iterator[tuple[str, npt.NDArray]]:
    """(batch, rows to fit on) for each batch; CamaeError when a batch has fewer than `needed`."""
    kind = "rows" if control is None else "negative controls"
    if control is not None:
        control_rows(control, x.shape[0])  # there must be some
    if batch is None:
        names, members = np.array([EVERY]), [np.arange(x.shape[0])]
    else:
        names, members = groups(batch)
    chosen = [index if control is None else index[control[index]] for index in members]
    for name, index in zip(names.tolist(), chosen, strict=True):
        if len(index) < needed:
            where = f"batch '{name}'" if name != EVERY else "the table"
            raise CamaeError(
                f"{where} has {len(index)} {kind}, at least {needed} are needed; leave the batch out, or align "
                "by a larger unit such as the experiment"
            )
    yield from zip(names.tolist(), chosen, strict=True)
