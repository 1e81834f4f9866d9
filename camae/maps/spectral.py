"""Covariances, principal axes and matrix powers, all in fp64, all by the symmetric eigensolver `eigh`."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from camae.errors import CamaeError
from camae.maps.arrays import Array, namespace, rows, to_numpy

ROWS = 16_384  # rows in memory at once in fp64
# Variation that is rounding, relative to a column's mean absolute value. Embeddings are sums of about 1,024 products
# in fp32: their rounding error is sqrt(1024) = 32 times fp32's 2^-23, whatever precision they are stored in.
ROUNDING = 32 * 2.0**-23
_NULL = 1e-14  # eigenvalues under this share of the largest are zero


@dataclass
class Moments:
    """First and second moments of a set of rows: count, mean_D and population covariance_DD (ddof 0)."""

    count: int
    mean: Array
    covariance: Array

    @property
    def variance(self) -> Array:
        """Population variance of each feature, (D,)."""
        return namespace(self.covariance).diagonal(self.covariance)


def moments(x: Array, index: np.ndarray) -> Moments:
    """Moments of the rows `index` of x (n, d), computed about their own mean, in fp64, some rows at a time."""
    parts = [index[start : start + ROWS] for start in range(0, len(index), ROWS)]
    mean = sum(rows(x, part).sum(axis=0, dtype=np.float64) for part in parts) / len(index)
    covariance = namespace(x).zeros((x.shape[1],) * 2)
    for part in parts:
        centered = rows(x, part) - mean
        covariance = covariance + centered.T @ centered
    return Moments(len(index), mean, covariance / len(index))


def mean_magnitude(x: Array, index: np.ndarray | None = None) -> Array:
    """Mean absolute value of each feature (D,), over all rows of x or those of `index`, in fp64."""
    xp = namespace(x)
    count = x.shape[0] if index is None else len(index)
    total = xp.zeros(x.shape[1])
    for start in range(0, count, ROWS):
        part = x[start : start + ROWS] if index is None else rows(x, index[start : start + ROWS])
        total = total + xp.abs(part).sum(axis=0, dtype=np.float64)
    return total / count


def is_rounding(std: Array, magnitude: Array) -> Array:
    """Which columns vary by no more than rounding: std (D,) against their mean absolute value (D,)."""
    return std <= ROUNDING * magnitude + 1e-30


def safe_scale(std: Array, magnitude: Array) -> Array:
    """Standard deviations to divide by: 1 where a column varies by no more than rounding."""
    xp = namespace(std)
    return xp.where(is_rounding(std, magnitude), xp.ones_like(std), std)


def weight_scale(std: Array, magnitude: Array) -> Array:
    """Standard deviations to divide by: infinite where a column varies by no more than rounding, which weighs 0."""
    xp = namespace(std)
    return xp.where(is_rounding(std, magnitude), xp.full_like(std, np.inf), std)


def magnitude_along(axes_DK: Array, magnitude: Array) -> Array:
    """Size of the terms whose rounding errors add up in x @ axes_DK, (K,)."""
    return namespace(axes_DK).sqrt((axes_DK**2).T @ magnitude**2)


def principal_axes(
    total: Moments, rtol: float, components: int | None, method: str, magnitude: Array
) -> tuple[Array, Array]:
    """Principal axes: eigenvectors axes_DK of the covariance in falling order of variance.

    magnitude: mean absolute value of each feature, (D,).
    Returns them with spread_K, the population standard deviations along them.
    K is the number of singular values above rtol times the largest and above rounding, at most count - 1 and
    `components`.
    Warns, with the rank, when null components were dropped. Each axis' largest entry is positive.
    """
    xp = namespace(total.covariance)
    values, vectors = xp.linalg.eigh(total.covariance)
    values, vectors = values[::-1], vectors[:, ::-1]
    top = float(values[0])
    if top <= 0:
        raise CamaeError(
            f"{method}: the rows to fit on are all the same; there is no variation to learn from"
        )
    spread = xp.sqrt(xp.maximum(values, 0))
    real = (values > rtol**2 * top) & ~is_rounding(spread, magnitude_along(vectors, magnitude))
    chosen = np.flatnonzero(to_numpy(real))[: total.count - 1]
    rank = len(chosen)
    if rank == 0:
        raise CamaeError(f"{method}: the rows to fit on differ by no more than rounding")
    if rank < len(values):
        warnings.warn(
            f"{method}: {total.count} rows to fit on span {rank} of {len(values)} dimensions; the other "
            f"{len(values) - rank} hold no variation there and are dropped",
            stacklevel=2,
        )
    kept = xp.asarray(chosen if components is None else chosen[:components])
    axes = vectors[:, kept]
    largest = xp.take_along_axis(axes, xp.argmax(xp.abs(axes), axis=0)[None], axis=0)
    return axes * xp.sign(largest), spread[kept]


def inverse_root(controls_NK: Array, eps: float, of: str) -> tuple[float, Array, Array]:
    """Whitening factor (Cov + eps I)^(-1/2), Cov (ddof 1) of controls_NK about their own mean.

    of: method and batch, for the message. Raises CamaeError where eps is 0 and Cov has not full rank.

    Returns level, axes_KR and gain_R; the root is level I + axes diag(gain) axes'.
    With fewer controls than columns the covariance has low rank, and the eigenproblem has the size of the smaller
    side.
    """
    xp = namespace(controls_NK)
    n, k = controls_NK.shape
    centered = (controls_NK - controls_NK.mean(axis=0)) / (n - 1) ** 0.5
    if n > k:
        values, axes = xp.linalg.eigh(centered.T @ centered)
    else:
        values, left = xp.linalg.eigh(centered @ centered.T)
        kept = values > xp.maximum(values[-1] * _NULL, 1e-300)
        values, left = values[kept], left[:, kept]
        axes = (centered.T @ left) / xp.sqrt(values)
    if eps == 0 and (n <= k or not bool(values[0] > values[-1] * _NULL)):
        raise CamaeError(
            f"{of}: eps=0 leaves the covariance of {n} controls in {k} components singular; give an eps above 0, more "
            "controls, or fewer components"
        )
    level = eps**-0.5 if eps > 0 else 0.0  # of what lies outside the axes: nothing, where the rank is full
    return level, axes, (xp.maximum(values, 0) + eps) ** -0.5 - level


def symmetric_power(matrix: Array, eps: float, power: float) -> Array:
    """Matrix power (matrix + eps I)^power of a symmetric positive semi-definite matrix."""
    xp = namespace(matrix)
    values, vectors = xp.linalg.eigh(matrix)
    return vectors * (xp.maximum(values, 0) + eps) ** power @ vectors.T
