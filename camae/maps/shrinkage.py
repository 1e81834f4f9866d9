"""Whitening by a shrunk covariance, for screens with fewer controls or replicates than features.

A covariance S from N rows of D features is noise in most directions when N is not many times D. Shrinkage mixes it
with a multiple of the identity, (1 - s) S + s mu I with mu = trace(S) / D, so that nothing has to be dropped and no
noise is blown up. The strength s is a number, or that of Ledoit and Wolf (2004), which makes the expected squared
error of the covariance smallest.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from camae.errors import CamaeError
from camae.maps import spectral
from camae.maps.affine import EVERY, Affine, Alignment, BatchMaps, LowRank, Magnitude, fit_rows
from camae.maps.aggregation import group_means
from camae.maps.arrays import Array, groups, namespace, rows
from camae.maps.spectral import weight_scale

Shrinkage: TypeAlias = Literal["ledoit_wolf"] | float
_LEAST = 1e-6  # strength under which a covariance without full rank cannot be inverted in fp64
_NULL = 1e-14  # eigenvalues under this share of the largest are zero


@dataclass
class ResidualSums:
    """Sums over residuals of rows about the mean of their group: all that a covariance and its shrinkage need.

    freedom: N, rows less groups. fourth: sum of |r|^4 / w over residuals r, w = 1 - 1/m in a group of m rows.
    rows: the residuals (n, D) themselves, where they are no more than columns; else scatter (D, D), the sum of r r'.
    """

    freedom: int
    fourth: float
    rows: list[Array]
    scatter: Array | None

    def add(self, residual_ND: Array, weight_N: Array) -> None:
        """Add residuals (n, D) with their w (n,)."""
        xp = namespace(residual_ND)
        square_N = xp.einsum("ij,ij->i", residual_ND, residual_ND)
        self.fourth += float((square_N**2 / weight_N).sum())
        if self.scatter is None:
            self.rows.append(residual_ND)
        else:
            self.scatter = self.scatter + residual_ND.T @ residual_ND

    def spectrum(self) -> tuple[Array, Array]:
        """Eigenvalues (R,) and eigenvectors (D, R) of the covariance, sum of r r' / N; R < D where rows are few."""
        if self.scatter is not None:
            xp = namespace(self.scatter)
            values, axes = xp.linalg.eigh(self.scatter / self.freedom)
            return xp.maximum(values, 0), axes
        xp = namespace(self.rows[0])
        table = xp.concatenate(self.rows) / self.freedom**0.5
        values, left = xp.linalg.eigh(table @ table.T)
        kept = values > xp.maximum(values[-1] * _NULL, 1e-300)
        values, left = values[kept], left[:, kept]
        return values, (table.T @ left) / xp.sqrt(values)


def ledoit_wolf(values: Array, width: int, fourth: float, freedom: int) -> float:
    """Strength of Ledoit and Wolf: min(b2, d2) / d2, between 0 and 1.

    values: eigenvalues of the covariance S, those that are zero may be left out. width: D. fourth, freedom: as in
    `ResidualSums`. d2 = |S - mu I|^2 / D, b2 = (sum w |x x' - S|^2) / (N^2 D) = (fourth / N - |S|^2) / (N D), where
    x = r / sqrt(w) has the covariance S: a group of two rows counts as the one independent row that it is.
    Ledoit and Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices", section 3.2.
    """
    mean = float(values.sum()) / width
    square = float((values**2).sum())
    apart = (square - width * mean**2) / width
    noise = (fourth / freedom - square) / (freedom * width)
    return 1.0 if apart <= _NULL * mean**2 else min(max(noise, 0.0), apart) / apart


def shrunk_root(sums: ResidualSums, width: int, shrinkage: Shrinkage, method: str) -> tuple[float, LowRank]:
    """Strength s, and the whitening factor ((1 - s) S + s mu I)^(-1/2) of the covariance S of `sums`."""
    if sums.freedom < 2:
        raise CamaeError(
            f"{method}: the rows to fit on leave {sums.freedom} degrees of freedom for a covariance, at least 2 are "
            "needed; give more controls or replicates"
        )
    values, axes = sums.spectrum()
    mean = float(values.sum()) / width
    if mean <= 0:
        raise CamaeError(
            f"{method}: the rows to fit on are all the same; there is no variation to learn from"
        )
    chosen = (
        ledoit_wolf(values, width, sums.fourth, sums.freedom) if shrinkage == "ledoit_wolf" else shrinkage
    )
    strength = max(float(chosen), _LEAST)
    level = (strength * mean) ** -0.5
    return strength, LowRank(level, axes, ((1 - strength) * values + strength * mean) ** -0.5 - level)


def check_shrinkage(method: str, shrinkage: object) -> None:
    """Raise CamaeError for a strength that is neither "ledoit_wolf" nor a number above 0, up to 1."""
    number = isinstance(shrinkage, int | float | np.integer | np.floating) and not isinstance(shrinkage, bool)
    if shrinkage != "ledoit_wolf" and not (number and 0 < float(shrinkage) <= 1):  # type: ignore[arg-type]
        raise CamaeError(
            f"{method}: shrinkage must be 'ledoit_wolf' or a number above 0, up to 1, got {shrinkage!r}"
        )


@dataclass
class ShrunkTVN(Alignment):
    """Typical variation normalization (TVN) by a shrunk covariance, for fewer controls than features.

    1. Within each batch, center and scale each feature on the batch's controls (population std, as `Standardize`).
    2. Multiply by ((1 - s) S + s mu I)^(-1/2), S the covariance of all controls about their batch's mean, with
       N = controls - batches degrees of freedom, and mu = trace(S) / D.

    All D features are kept: directions in which controls were not seen to vary are scaled by mu, not dropped (the
    component cap of `maps.map_screen`) and not blown up. There is no covariance of a single batch (step 4 of `TVN`):
    few controls cannot tell it.

    Parameters
    ----------
    shrinkage : "ledoit_wolf" or float
        The strength s, above 0 and up to 1, where only the scale is left. "ledoit_wolf" is computed from the controls;
        `strength_` reports it.

    Raises
    ------
    CamaeError
        From `fit`, without ``control=``, or when a batch has fewer than two controls.

    References
    ----------
    Ando et al. 2017, "Improving Phenotypic Measurements in High-Content Imaging Screens"; Ledoit and Wolf 2004, "A
    well-conditioned estimator for large-dimensional covariance matrices".
    """

    method: ClassVar[str] = "tvn_shrunk"

    shrinkage: Shrinkage = "ledoit_wolf"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shrinkage(self.method, self.shrinkage)
        self.strength_: float = math.nan

    def _learn(
        self, x: Array, batch: np.ndarray | None, control: np.ndarray | None, magnitude: Magnitude
    ) -> BatchMaps:
        if control is None:
            raise CamaeError(
                f"{self.method} is fitted on negative controls; give control= with one boolean per row"
            )
        plain = self._standardized(x, batch, control, magnitude)
        members = [index for _, index in fit_rows(x, batch, control, needed=2)]
        (sums,) = residual_sums(_Standardized(x, batch, plain), members, [0] * len(members), 1)
        self.strength_, factor = shrunk_root(sums, x.shape[1], self.shrinkage, self.method)
        for name, affine in plain.items():
            yield name, replace(affine, factor=factor)

    def _standardized(
        self, x: Array, batch: np.ndarray | None, control: np.ndarray | None, magnitude: Magnitude
    ) -> dict[str, Affine]:
        """Step 1 by batch. A feature that is constant among the rows to fit on weighs nothing."""
        self.rank_, found = x.shape[1], {}
        for name, index in fit_rows(x, batch, control, needed=2):
            chosen = rows(x, index).astype(np.float64)
            std_D = chosen.std(axis=0)
            self._note_constant(name, std_D, magnitude(name))
            found[name] = Affine(chosen.mean(axis=0), 1 / weight_scale(std_D, magnitude(name)))
        return found


@dataclass
class ReplicateWhitening(ShrunkTVN):
    """Whitening by the covariance within replicates, shrunk, and cross-validated over perturbations.

    What differs between replicates of one perturbation is technical or chance. Step 1 is that of `ShrunkTVN` (on all
    rows of a batch without ``control=``); step 2 takes S from the residuals of replicates about their perturbation's
    mean over all batches, with N = replicates - perturbations degrees of freedom. Controls and rows whose perturbation
    is "" are left out of S.

    A covariance that was fitted on the replicates of a perturbation draws these together. So perturbations are divided
    into `folds` by their names, and a row is mapped by the covariance of the replicates of all other folds.

    Parameters
    ----------
    shrinkage : "ledoit_wolf" or float
        As in `ShrunkTVN`.
    folds : int
        Parts for cross-validation. 0 maps all rows by one covariance: fit it on other perturbations than the ones that
        are evaluated, ``fit(x[other], batch[other], control[other], perturbation=perturbation[other])``.

    Raises
    ------
    CamaeError
        From `fit`, without ``perturbation=``, or when no perturbation outside a fold has two replicates.

    Notes
    -----
    The fold of a perturbation is a function of its name (BLAKE2), so that a table in parts, other processes and later
    plates divide alike. `transform` without ``perturbation=`` maps by the covariance of all replicates. Rows of
    different folds are compared by slightly different maps: symmetric roots of covariances that share most rows.

    References
    ----------
    Within-class covariance normalization: Hatch et al. 2006; Ledoit and Wolf 2004.
    """

    method: ClassVar[str] = "replicate_whitening"
    of_replicates: ClassVar[bool] = True

    folds: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if (
            isinstance(self.folds, bool)
            or not isinstance(self.folds, int)
            or self.folds < 0
            or self.folds == 1
        ):
            raise CamaeError(
                f"{self.method}: folds must be 0 or a whole number of at least 2, got {self.folds!r}"
            )

    def _learn(
        self, x: Array, batch: np.ndarray | None, control: np.ndarray | None, magnitude: Magnitude
    ) -> BatchMaps:
        if self._perturbation is None:
            raise CamaeError(
                f"{self.method} is fitted on replicates; give perturbation= with one label per row"
            )
        plain = self._standardized(x, batch, control, magnitude)
        members, fold_G = self._replicates(self._perturbation, control)
        sums = residual_sums(_Standardized(x, batch, plain), members, fold_G.tolist(), max(self.folds, 1))
        width = x.shape[1]
        self.folds_ = [
            shrunk_root(merged(sums[:f] + sums[f + 1 :]), width, self.shrinkage, self.method)[1]
            for f in range(self.folds)
        ]
        self.strength_, factor = shrunk_root(merged(sums), width, self.shrinkage, self.method)
        for name, affine in plain.items():
            yield name, replace(affine, factor=factor)

    def _replicates(
        self, perturbation: np.ndarray, control: np.ndarray | None
    ) -> tuple[list[npt.NDArray[np.intp]], npt.NDArray[np.intp]]:
        """Rows of each perturbation with two or more, and its fold. Raises CamaeError when a fold leaves none."""
        used = perturbation != ""
        chosen = np.flatnonzero(used if control is None else used & ~control)
        names, members = groups(perturbation[chosen])
        kept = [k for k, index in enumerate(members) if len(index) > 1]
        fold_G = fold_of(names[kept], max(self.folds, 1))
        if not kept or (self.folds and len(np.unique(fold_G)) < 2):
            raise CamaeError(
                f"{self.method}: {len(kept)} of {len(names)} perturbations have two or more replicates, too few to fit "
                f"on those outside each of {self.folds} folds; give more replicates, or use tvn_shrunk"
            )
        return [chosen[members[k]] for k in kept], fold_G

    def _apply(self, affine: Affine, x: Array, perturbation: np.ndarray | None) -> Array:
        if perturbation is None or not self.folds_:
            return affine(x)
        xp = namespace(x)
        out = xp.empty((x.shape[0], self.rank_), dtype=x.dtype)
        fold_N = np.where(perturbation == "", -1, fold_of(perturbation, len(self.folds_)))
        for fold in np.unique(fold_N).tolist():
            index = np.flatnonzero(fold_N == fold)
            own = affine if fold < 0 else replace(affine, factor=self.folds_[fold])
            out[xp.asarray(index)] = own(rows(x, index))
        return out


def fold_of(names: np.ndarray, folds: int) -> npt.NDArray[np.intp]:
    """Fold (n,) of each name, a function of the name alone."""
    distinct, inverse = np.unique(names, return_inverse=True)
    digests = [hashlib.blake2b(str(name).encode(), digest_size=8).digest() for name in distinct]
    code = np.array([int.from_bytes(digest, "big") % folds for digest in digests], dtype=np.intp)
    return code[inverse]


@dataclass
class _Standardized:
    """Rows of x (n, d) centered and scaled by the map of their batch, in fp64, a block at a time."""

    x: Array
    batch: np.ndarray | None
    maps: dict[str, Affine]

    def __getitem__(self, index: npt.NDArray[np.intp]) -> Array:
        chosen = rows(self.x, index).astype(np.float64)
        if self.batch is None:
            return self.maps[EVERY](chosen)
        names, members = groups(self.batch[index])
        for name, part in zip(names.tolist(), members, strict=True):
            at = namespace(chosen).asarray(part)
            chosen[at] = self.maps[name](chosen[at])
        return chosen


def residual_sums(
    table: _Standardized, members: Sequence[npt.NDArray[np.intp]], fold_G: Sequence[int], folds: int
) -> list[ResidualSums]:
    """`ResidualSums` of the groups of each fold. members: rows of each group; fold_G: its fold."""
    width, total = table.x.shape[1], sum(map(len, members))
    xp = namespace(table.x)
    sums = [
        ResidualSums(0, 0.0, [], None if total <= width else xp.zeros((width, width))) for _ in range(folds)
    ]
    for fold, block in _blocks(members, fold_G):
        sizes = np.array([len(index) for index in block])
        chosen = table[np.concatenate(block)]
        local = np.split(np.arange(len(chosen)), np.cumsum(sizes)[:-1])
        mean = group_means(chosen, local)
        residual = chosen - mean[xp.asarray(np.repeat(np.arange(len(sizes)), sizes))]
        sums[fold].add(residual, xp.asarray(np.repeat(1 - 1 / sizes, sizes)))
        sums[fold].freedom += int((sizes - 1).sum())
    return sums


def _blocks(
    members: Sequence[npt.NDArray[np.intp]], fold_G: Sequence[int]
) -> Iterator[tuple[int, list[npt.NDArray[np.intp]]]]:
    """(fold, whole groups of at most about `spectral.ROWS` rows together)."""
    for fold in sorted(set(fold_G)):
        block: list[npt.NDArray[np.intp]] = []
        for index in (index for index, other in zip(members, fold_G, strict=True) if other == fold):
            if block and sum(map(len, block)) + len(index) > spectral.ROWS:
                yield fold, block
                block = []
            block.append(index)
        yield fold, block


def merged(sums: Sequence[ResidualSums]) -> ResidualSums:
    """The sums over several sets of groups."""
    scatters = [s.scatter for s in sums if s.scatter is not None]
    return ResidualSums(
        sum(s.freedom for s in sums),
        sum(s.fourth for s in sums),
        [part for s in sums for part in s.rows],
        sum(scatters[1:], start=scatters[0]) if scatters else None,
    )
