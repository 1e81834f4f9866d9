"""Standard errors and 95 % intervals of shares of known pairs: recall, and the difference of two.

Pairs are not independent: two of them depend on each other where they share a perturbation, and where their
perturbations belong to one complex or pathway, whose strength they share. So perturbations are put into groups of those
with mostly the same known partners, and the variance is summed over pairs that touch a common group: the
cluster-robust variance of dyadic data. Random pairs, no two of which have the same partners, are groups of one
perturbation each; cliques are a group each.

Measured coverage: bench/coverage.py, bench/results/cpu-2core/coverage.json.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEVEL = 0.95
ALIKE = 0.5  # Jaccard index of two perturbations' known partners (each with itself) above which they are of one group
_COLUMNS = 8192  # columns of the table of partners in memory at once
_ROWS = 4096  # pairs whose partners are compared at once
_LARGEST_SHARE = 0.75  # of all pairs, in the correction for few groups
_MANY = 1000.0  # degrees of freedom from which Student's t is the normal distribution, to .002

Shares = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """Covariance (k, k) of k means over pairs, and the number of groups that it rests on.

    groups: effective number, (sum m)^2 / sum m^2 with m the pairs that touch a group.
    """

    covariance: Shares
    groups: float

    @property
    def t(self) -> float:
        """Student's t of a 95 % interval, with groups - 1 degrees of freedom, at least 1."""
        return student_t(max(self.groups - 1, 1.0))

    @property
    def errors(self) -> Shares:
        """Standard errors, (k,)."""
        return np.sqrt(np.maximum(self.covariance.diagonal(), 0))


def spread(index: np.ndarray, value: np.ndarray) -> Spread:
    """Spread of the means of value (k, pairs) over screens. index: (pairs, 2) rows of the map.

    Variance of a mean: (sum over groups g of T_g^2 / (1 - m_g / m)^2 - sum over pairs of groups of T_gh^2) / m^2, with
    T_g the sum of residuals of the pairs that touch g, T_gh of those between g and h, which the first sum holds twice,
    and m pairs in all, of which m_g touch g. The divisor corrects for residuals about a mean of few groups. Where that
    is less than pairs of different groups would give if they were independent, as it can be by chance, it is that.
    Aronow, Samii and Assenova 2015, "Cluster-Robust Variance Estimation for Dyadic Data"; Bell and McCaffrey 2002.
    """
    residual = value - value.mean(axis=1, keepdims=True)
    total = value.shape[1]
    local = _numbered(index)
    first, second = related_groups(local)[local].T
    number = int(max(first.max(), second.max())) + 1
    apart = first != second
    touch_G = np.bincount(first, minlength=number) + np.bincount(second[apart], minlength=number)
    sums_KG = np.stack(
        [np.bincount(first, r, number) + np.bincount(second[apart], r[apart], number) for r in residual]
    )
    left_G = 1 - np.minimum(touch_G / total, _LARGEST_SHARE)
    covariance = (sums_KG / left_G**2) @ sums_KG.T
    cell = np.unique(np.minimum(first, second) * number + np.maximum(first, second), return_inverse=True)[1]
    sums_KC = np.stack([np.bincount(cell, r) for r in residual]).astype(np.float64)
    between = np.bincount(cell, apart) > 0
    covariance = covariance - sums_KC[:, between] @ sums_KC[:, between].T
    covariance = _at_least(covariance, sums_KC @ sums_KC.T)
    return Spread(covariance / total**2, float(touch_G.sum() ** 2 / (touch_G.astype(float) ** 2).sum()))


def _at_least(covariance: Shares, least: Shares) -> Shares:
    """Covariance (k, k) whose variance in no direction is under that of `least`: eigenvalues relative to it >= 1."""
    values, axes = np.linalg.eigh(least)
    kept = values > 1e-12 * max(float(values[-1]), 1e-300)
    root = axes[:, kept] * np.sqrt(values[kept])
    inverse = axes[:, kept] / np.sqrt(values[kept])
    relative, turn = np.linalg.eigh(inverse.T @ covariance @ inverse)
    half = root @ turn * np.sqrt(np.maximum(relative, 1.0))
    return half @ half.T


def _numbered(index: np.ndarray) -> npt.NDArray[np.intp]:
    """Pairs (pairs, 2) with their perturbations numbered from 0 without gaps, in order."""
    return np.unique(index, return_inverse=True)[1].reshape(index.shape)


def related_groups(index: np.ndarray) -> npt.NDArray[np.intp]:
    """Group of each of the perturbations 0, 1, ... of pairs (pairs, 2).

    Two perturbations of a known pair are of one group where their known partners, each with itself, have a Jaccard
    index above `ALIKE`; groups are what is connected by such pairs. Where that would leave one group, which tells no
    variance, each perturbation is one.
    """
    number = int(index.max()) + 1
    degree = np.bincount(index.ravel(), minlength=number) + 1
    most, least = degree[index].max(axis=1), degree[index].min(axis=1)
    pairs = index[least > ALIKE * most]  # the index is at most least / most
    common = np.zeros(len(pairs), np.int64)
    for start in range(0, number, _COLUMNS):
        common += _common_partners(index, pairs, number, start)
    union = degree[pairs].sum(axis=1) - common
    found = _connected(pairs[common > ALIKE * union], number)
    return found if found.max() > 0 else np.arange(number)


def _common_partners(index: np.ndarray, pairs: np.ndarray, number: int, start: int) -> npt.NDArray[np.int64]:
    """How many of `_COLUMNS` perturbations from `start` are partners of both ends of each of `pairs`, by bits."""
    stop = min(start + _COLUMNS, number)
    partner = np.zeros((number, -(-(stop - start) // 64) * 64), bool)
    for one, other in (index.T, index.T[::-1]):
        inside = (other >= start) & (other < stop)
        partner[one[inside], other[inside] - start] = True
    partner[np.arange(start, stop), np.arange(stop - start)] = True
    words = np.packbits(partner, axis=1).view(np.uint64)
    common = np.zeros(len(pairs), np.int64)
    for at in range(0, len(pairs), _ROWS):
        first, second = pairs[at : at + _ROWS].T
        common[at : at + _ROWS] = np.bitwise_count(words[first] & words[second]).sum(axis=1, dtype=np.int64)
    return common


def _connected(pairs: np.ndarray, number: int) -> npt.NDArray[np.intp]:
    """Connected component of each of `number` nodes, numbered from 0. pairs: (n, 2) edges."""
    label = np.arange(number)
    while True:
        lowest = label[pairs].min(axis=1)
        lower = label.copy()
        for end in pairs.T:
            np.minimum.at(lower, end, lowest)
        lower = lower[lower]
        if (lower == label).all():
            return np.unique(label, return_inverse=True)[1]
        label = lower


def share_interval(value: float, variance: float, by: Spread) -> tuple[float, float]:
    """95 % interval of a share between 0 and 1 of this variance: Wilson's, of as many trials as would have it.

    The trials are value (1 - value) / variance, and where that is 0 / 0 (no pair is found, or all are) as many as
    there are groups. Wilson 1927; Korn and Graubard 1998 for effective sample sizes.
    """
    trials = value * (1 - value) / variance if variance > 0 and 0 < value < 1 else by.groups
    square = by.t**2 / trials
    center = (value + square / 2) / (1 + square)
    half = math.sqrt(square * value * (1 - value) + square**2 / 4) / (1 + square)
    return max(center - half, 0.0), min(center + half, 1.0)


def difference_interval(first: float, second: float, by: Spread) -> tuple[float, float]:
    """95 % interval of first - second, shares whose covariance (2, 2) is that of `by`: from the interval of each.

    Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based on paired data",
    method 10; Zou and Donner 2008.
    """
    own, other = by.covariance[0, 0], by.covariance[1, 1]
    low, high = share_interval(first, own, by)
    low_2, high_2 = share_interval(second, other, by)
    phi = 0.0 if min(own, other) <= 0 else float(np.clip(by.covariance[0, 1] / math.sqrt(own * other), -1, 1))

    def away(one: float, two: float) -> float:
        return math.sqrt(max(one**2 - 2 * phi * one * two + two**2, 0))

    gain = first - second
    return gain - away(first - low, high_2 - second), gain + away(high - first, second - low_2)


def student_t(freedom: float) -> float:
    """Two-sided quantile of Student's t distribution at `LEVEL`, for `freedom` >= 1 degrees of freedom.

    Solved by bisection of P(|T| <= t) = 2 K times the integral of cos^(freedom - 1) from 0 to atan(t / sqrt(freedom)).
    """
    freedom = min(freedom, _MANY)
    node, weight = np.polynomial.legendre.leggauss(64)
    factor = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    low, high = 1.9, 13.0  # 1.96 for the normal distribution, 12.7 for one degree of freedom
    for _ in range(60):
        middle = (low + high) / 2
        angle = math.atan(middle / math.sqrt(freedom))
        inside = float((weight * np.cos(angle * (node + 1) / 2) ** (freedom - 1)).sum()) * angle * factor
        low, high = (middle, high) if inside < LEVEL else (low, middle)
    return (low + high) / 2
