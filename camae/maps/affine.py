"""Alignment: the base of all batch corrections, an affine map learned for each batch.

Every method maps a row x of batch b to (x - offset_b) @ matrix_b, or to (x - offset_b) * scale_b. `Alignment` holds
what was learned and applies it; the methods (`camae.maps.alignment`) only differ in how they learn the maps. Fitted
in fp64, applied in the precision of the table.
"""

from __future__ import annotations

import abc
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from camae.errors import CamaeError
from camae.maps.arrays import Array, Labels, Mask, beside, groups, namespace, rows, takes_tensors, to_numpy
from camae.maps.inputs import batches, check_finite, control_rows, embeddings, labels, listing, mask
from camae.maps.spectral import is_rounding, mean_magnitude

EVERY = ""  # key of a map that holds for all rows; no batch may be named so


def batch_name(name: str) -> str:
    """What a message calls a batch by its label, or the table as a whole."""
    return "the table" if name == EVERY else f"batch '{name}'"


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
        offset = beside(self.offset, x).astype(x.dtype, copy=False)
        centered = x - offset
        if self.matrix.ndim == 1:
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused by the caller
                centered *= beside(self.matrix, x).astype(x.dtype, copy=False)
            return centered if self.factor is None else self._times_factor(centered)
        if self.factor is None:
            return centered @ beside(self.matrix, x).astype(x.dtype, copy=False)
        matrix = beside(self.matrix, x)
        if x.shape[0] > matrix.shape[0] // 2:  # folding the factor into the matrix costs less than using it
            return centered @ self._factor_beside(x, np.dtype(np.float64)).right_of(matrix).astype(x.dtype)
        return self._factor_beside(x, x.dtype).right_of(centered @ matrix.astype(x.dtype))

    def _times_factor(self, centered: Array) -> Array:
        """centered @ factor, by one product with the whole factor where that costs less."""
        assert self.factor is not None
        (n, width), rank = centered.shape, len(self.factor.gain)
        if n * (2 * rank - width) <= width * rank:
            return self._factor_beside(centered, centered.dtype).right_of(centered)
        whole = self._factor_beside(centered, np.dtype(np.float64)).right_of(namespace(centered).eye(width))
        return centered @ whole.astype(centered.dtype)

    def _factor_beside(self, x: Array, dtype: np.dtype) -> LowRank:
        """The factor in x's namespace and `dtype`."""
        assert self.factor is not None
        axes, gain = beside(self.factor.axes, x), beside(self.factor.gain, x)
        return LowRank(self.factor.level, axes.astype(dtype, copy=False), gain.astype(dtype, copy=False))


Magnitude: TypeAlias = Callable[[str], Array]  # batch label -> mean absolute value of its features (D,), fp64
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
    of_replicates: ClassVar[bool] = False  # whether it is fitted on replicates of perturbations

    def __post_init__(self) -> None:
        self.maps_: dict[str, Affine] = {}
        self.rank_: int = 0
        self.folds_: list[
            LowRank
        ] = []  # factors of cross-validated methods, each without a fold of perturbations
        self._perturbation: np.ndarray | None = None
        self._constant: dict[str, npt.NDArray[np.intp]] = {}
        _check_options(self)

    @abc.abstractmethod
    def _learn(
        self, x: Array, batch: np.ndarray | None, control: np.ndarray | None, magnitude: Magnitude
    ) -> BatchMaps:
        """Yield (batch label, map) one by one. x: (n, d), in fp32 or fp64; batch: n labels; control: n booleans."""

    @takes_tensors
    def fit(
        self,
        x: Array,
        batch: Labels | None = None,
        control: Mask | None = None,
        magnitudes: Mapping[str, Array] | None = None,
        perturbation: Labels | None = None,
    ) -> Alignment:
        """Learn the maps.

        Parameters
        ----------
        x : (n, d) array
            Embeddings, NumPy, CuPy or torch, floating point.
        batch : n labels, optional
            Plate or experiment of each row. Without it one map is learned for all rows.
        control : n booleans, optional
            True for negative controls; the maps are then learned on these rows alone.
        magnitudes : mapping of str to (d,) array, optional
            Mean absolute value of each feature, for each batch and, under "", for all rows, where x is only a part
            of the table. Columns that vary by less than rounding at that scale are not scaled up; a warning names
            them.
        perturbation : n labels, optional
            Perturbation of each row, "" for none: for methods that are fitted on replicates (`ReplicateWhitening`);
            others do not use it.

        Returns
        -------
        Alignment
            This object.

        Raises
        ------
        CamaeError
            For rows that are not finite, labels of another length, a batch without a name, a missing or too small
            control set.
        """
        x = embeddings(x)
        batch_N, control_N, name_N = check_arguments(x, batch, control, perturbation)
        self._constant, self._perturbation = {}, name_N
        self.maps_ = dict(self._learn(x, batch_N, control_N, _magnitude(x, batch_N, magnitudes)))
        self._perturbation = None
        self._warn_of_constant(x.shape[1])
        return self

    def _note_constant(self, name: str, std: Array, magnitude: Array) -> None:
        """Remember the columns of a batch that vary by no more than rounding among the rows to fit on."""
        found = np.flatnonzero(to_numpy(is_rounding(std, magnitude)))
        if len(found):
            self._constant[name] = found

    def _warn_of_constant(self, width: int) -> None:
        """One warning for all columns and batches noted."""
        if not self._constant:
            return
        columns = np.unique(np.concatenate(list(self._constant.values())))
        batches = [repr(name) for name in self._constant if name != EVERY]
        where = f" (batch {listing(batches)})" if batches else ""
        warnings.warn(
            f"{self.method}: {len(columns)} of {width} columns ({listing(columns.tolist())}, counted from 0) vary "
            f"by no more than rounding among the rows to fit on{where} and are not scaled up",
            stacklevel=4,  # past `takes_tensors`
        )

    @takes_tensors
    def transform(self, x: Array, batch: Labels | None = None, perturbation: Labels | None = None) -> Array:
        """Apply the learned maps.

        Parameters
        ----------
        x : (n, d) array
            Embeddings with the features of `fit`, NumPy, CuPy or torch.
        batch : n labels, optional
            Needed when the maps were learned by batch.
        perturbation : n labels, optional
            Perturbation of each row, "" for none: for methods that are cross-validated (`ReplicateWhitening`).

        Returns
        -------
        (n, rank_) array
            In x's namespace and dtype.

        Raises
        ------
        CamaeError
            When not fitted, when the features differ in number, or for a batch that is empty or unseen at fit.
        """
        if not self.maps_:
            raise CamaeError(f"{type(self).__name__} is not fitted; call fit(x, batch=, control=) first")
        x = embeddings(x)
        first = next(iter(self.maps_.values()))
        if x.shape[1] != first.offset.shape[0]:
            raise CamaeError(
                f"the aligner was fitted on {first.offset.shape[0]} features, x has {x.shape[1]}"
            )
        batch_N, _, name_N = check_arguments(x, batch, None, perturbation)
        if EVERY in self.maps_:
            return check_finite(self._apply(self.maps_[EVERY], x, name_N), self.method)
        if batch_N is None:
            raise CamaeError(f"{self.method} was fitted by batch; give batch= for the rows to transform")
        names, members = groups(batch_N)
        unseen = [name for name in names.tolist() if name not in self.maps_]
        if unseen:
            raise CamaeError(
                f"batch {listing(unseen)} was not seen when the aligner was fitted; fit again with its controls"
            )
        out = namespace(x).empty((x.shape[0], self.rank_), dtype=x.dtype)
        for name, index in zip(names.tolist(), members, strict=True):
            own = None if name_N is None else name_N[index]
            out[namespace(x).asarray(index)] = self._apply(self.maps_[name], rows(x, index), own)
        return check_finite(out, self.method)

    def _apply(self, affine: Affine, x: Array, perturbation: np.ndarray | None) -> Array:
        """Rows x of one batch mapped; perturbation: their labels, where they are known."""
        return affine(x)

    @takes_tensors
    def fit_transform(
        self,
        x: Array,
        batch: Labels | None = None,
        control: Mask | None = None,
        perturbation: Labels | None = None,
    ) -> Array:
        """`fit` and `transform` of the same table, without keeping more than one batch's map at a time.

        Parameters, result and errors are those of `fit` and `transform`.
        """
        x = embeddings(x)
        batch_N, control_N, name_N = check_arguments(x, batch, control, perturbation)
        xp, out = namespace(x), None
        members = {}
        if batch_N is not None:
            names, index = groups(batch_N)
            members = dict(zip(names.tolist(), index, strict=True))
        self._constant, self._perturbation = {}, name_N
        for name, affine in self._learn(x, batch_N, control_N, _magnitude(x, batch_N)):
            if name == EVERY:
                out = self._apply(affine, x, name_N)
                continue
            if out is None:
                out = xp.empty((x.shape[0], self.rank_), dtype=x.dtype)
            own = None if name_N is None else name_N[members[name]]
            out[xp.asarray(members[name])] = self._apply(affine, rows(x, members[name]), own)
        self._perturbation = None
        assert out is not None  # every method yields at least one batch
        self._warn_of_constant(x.shape[1])
        return check_finite(out, self.method)


def check_aligner(aligner: object) -> Alignment:
    """`aligner`. Raises CamaeError for what is none, such as the name or the class of one."""
    if not isinstance(aligner, Alignment):
        raise CamaeError(f"the aligner is {aligner!r:.60}; give an object such as maps.TVN()")
    return aligner


def _check_options(aligner: Alignment) -> None:
    """Raise CamaeError for options outside their ranges."""
    for name, low, high in (("eps", 0.0, math.inf), ("rtol", 0.0, 1.0)):
        value = getattr(aligner, name, low)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float | np.integer | np.floating)
            or not low <= value < high
        ):
            raise CamaeError(
                f"{aligner.method}: {name} must be a number from {low:g} to under {high:g}, got {value!r}"
            )
    count = getattr(aligner, "components", None)
    if count is not None and (
        isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1
    ):
        raise CamaeError(f"{aligner.method}: components must be a whole number of at least 1, got {count!r}")


def _magnitude(x: Array, batch: np.ndarray | None, known: Mapping[str, Array] | None = None) -> Magnitude:
    """Mean absolute values of the features by batch ("": all rows), computed when asked for."""
    found: dict[str, Array] = {name: beside(value, x) for name, value in (known or {}).items()}

    def magnitude(name: str) -> Array:
        if name not in found:
            found[name] = mean_magnitude(
                x, None if name == EVERY or batch is None else np.flatnonzero(batch == name)
            )
        return found[name]

    return magnitude


def check_arguments(
    x: Array, batch: Labels | None, control: Mask | None, perturbation: Labels | None
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Batches, mask of controls and perturbations of the rows of x. Raises CamaeError as `camae.maps.inputs` does."""
    n = x.shape[0]
    return (
        None if batch is None else batches(batch, n),
        None if control is None else mask(control, n, "control"),
        None if perturbation is None else labels(perturbation, n, "perturbation"),
    )


def fit_rows(
    x: Array, batch: np.ndarray | None, control: np.ndarray | None, needed: int
) -> Iterator[tuple[str, np.ndarray]]:
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
            raise CamaeError(
                f"{batch_name(name)} has {len(index)} {kind}, at least {needed} are needed; leave the batch out, or "
                "align by a larger unit such as the experiment"
            )
    yield from zip(names.tolist(), chosen, strict=True)
