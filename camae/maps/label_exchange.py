"""Permutation test of one perturbation: its profiles exchange labels with the controls of their own batch.

Under the null hypothesis, profiles of the perturbation and controls of one batch are exchangeable, so every choice of
as many profiles from each batch's pool (profiles and controls together) is equally likely. Three statistics are
computed of each choice S, with batch b giving n_b of its profiles:

- mean average precision: each member ranks the other members among its batch's remaining profiles;
- Mahalanobis distance: of the mean of (member - mean of its batch's remaining profiles), in the covariance of the pool
  about its batch means, shrunk toward a sphere (Ledoit and Wolf 2004). The pool's covariance is the same for every
  choice; one fitted on the controls alone would favor the perturbation, whose profiles it was not fitted on;
- energy distance: between the members and the remaining profiles, about batch means (Szekely and Rizzo 2013).

All three are read from the Gram matrix of the pool, so a choice costs n^2, not n d.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from camae.maps.distances import Distance, Similarities
from camae.maps.nulls import distinct_places, sequential_p_values

CHOICE_VALUES = 1 << 21  # pairs of members held at once
MEASURES = ("average_precision", "mahalanobis", "energy")


class Choices(NamedTuple):
    """Statistics of several choices, (choices,) fp64 each; average precision is NaN with one member."""

    average_precision: np.ndarray
    mahalanobis: np.ndarray
    energy: np.ndarray


class Pool:
    """Profiles of one perturbation and the controls of its batches.

    x: (n + c, d) fp64, the members first. batch: (n + c,) integers; every batch of a control has a member and every
    batch of a member a control.
    """

    def __init__(self, x: np.ndarray, batch: np.ndarray, n: int, distance: Distance = "cosine") -> None:
        order = np.argsort(batch[:n], kind="stable")
        x, batch = np.concatenate([x[order], x[n:]]), np.concatenate([batch[order], batch[n:]])
        self.n, self.batch = n, batch
        batches, counts = np.unique(batch[:n], return_counts=True)
        self.pools = [np.flatnonzero(batch == b) for b in batches]
        self.counts = counts.tolist()
        self.own = (
            batch[:n, None] == batch[None, :n]
        )  # which members share a batch; the same for every choice
        # A member counts for itself and, among its batch's remaining profiles, less the others' mean.
        kept = np.array([len(pool) - k for pool, k in zip(self.pools, counts, strict=True)])
        self.weight = (1 + counts / kept).repeat(counts) / n
        self.similar = Similarities(x, distance).block(np.arange(len(x)))
        self._rank()
        centered = x.copy()
        for pool in self.pools:
            centered[pool] -= x[pool].mean(axis=0)
        gram = centered @ centered.T
        self.whitened = whitened_products(gram, x.shape[1])
        norm = np.diag(gram)
        self.apart = np.sqrt(np.maximum(norm[:, None] + norm[None] - 2 * gram, 0))
        np.fill_diagonal(self.apart, 0)
        self.apart_sum = self.apart.sum(axis=1)

    def _rank(self) -> None:
        """Of each pair (i, j): how many profiles of i's batch, besides i, are more similar to i than j; ties half."""
        size = len(self.similar)
        self.above = np.empty((size, size))
        np.fill_diagonal(self.similar, -np.inf)
        for pool in self.pools:
            of_batch = np.isin(np.arange(size), pool)
            # The mean over both orders of the columns counts those of equal similarity half.
            first = _ahead(self.similar[pool], of_batch)
            second = _ahead(self.similar[pool, ::-1], of_batch[::-1])[:, ::-1]
            self.above[pool] = (first + second) / 2

    def choose(self, draws: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Random choices, (draws, n) rows of the pool: as many of each batch as the perturbation has."""
        parts = [
            pool[distinct_places(k, len(pool), draws, rng)]
            for pool, k in zip(self.pools, self.counts, strict=True)
        ]
        return np.concatenate(parts, axis=1)

    def statistics(self, members: npt.NDArray[np.int64] | None = None) -> Choices:
        """Statistics of choices (draws, n), of the perturbation itself by default."""
        if members is None:
            members = np.arange(self.n)[None]
        rows, columns = members[:, :, None], members[:, None, :]
        distance = np.einsum("sij,i,j->s", self.whitened[rows, columns], self.weight, self.weight)
        n, rest = self.n, len(self.apart) - self.n
        inside = self.apart[rows, columns].sum(axis=(1, 2))
        touching = self.apart_sum[members].sum(axis=1)
        outside = self.apart_sum.sum() - 2 * touching + inside
        energy = 2 * (touching - inside) / (n * rest) - inside / n**2 - outside / rest**2
        return Choices(
            self._average_precision(rows, columns), np.sqrt(np.maximum(distance, 0)), np.maximum(energy, 0)
        )

    def _average_precision(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        if self.n < 2:
            return np.full(len(rows), np.nan)
        similar = self.similar[rows, columns]
        order = np.argsort(-similar, axis=2)[:, :, :-1]  # a member itself is last
        own = np.take_along_axis(np.broadcast_to(self.own, similar.shape), order, axis=2)
        earlier = np.cumsum(own, axis=2) - own
        above = np.take_along_axis(self.above[rows, columns], order, axis=2) - earlier
        place = np.arange(1, self.n)
        precision: np.ndarray = (place / (np.maximum(above, 0) + place)).mean(axis=(1, 2))
        return precision

    def p_values(self, first: int, last: int, seed: list[int]) -> np.ndarray:
        """p values of the three statistics, (3,): `first` to `last` choices; NaN where the statistic is."""
        observed = np.array([value[0] for value in self.statistics()])
        # Choices that tie up to rounding count as equal.
        least = observed - 1e-9 * np.abs(observed)

        def count(pending: npt.NDArray[np.intp], draws: int, stage: int) -> npt.NDArray[np.int64]:
            rng = np.random.default_rng([*seed, stage])
            above, step = np.zeros(3, dtype=np.int64), max(CHOICE_VALUES // self.n**2, 1)
            for start in range(0, draws, step):
                found = self.statistics(self.choose(min(step, draws - start), rng))
                above += [(value >= bound).sum() for value, bound in zip(found, least, strict=True)]
            return above[pending]

        return np.where(np.isnan(observed), np.nan, sequential_p_values(count, 3, first, last))

    @property
    def arrangements(self) -> float:
        """How many choices there are (inf above 1e300)."""
        logs = [_log_comb(len(pool), k) for pool, k in zip(self.pools, self.counts, strict=True)]
        return float(np.exp(sum(logs))) if sum(logs) < 690 else float("inf")


def _ahead(similar: np.ndarray, flagged: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Of each entry, how many flagged columns are larger in its row, or equal and to its left."""
    order = np.argsort(-similar, axis=1, kind="stable")
    flag = flagged[order].astype(np.int64)
    ahead = np.empty(similar.shape, dtype=np.int64)
    np.put_along_axis(ahead, order, np.cumsum(flag, axis=1) - flag, axis=1)
    return ahead


def _log_comb(total: int, chosen: int) -> float:
    return float(
        np.log(np.arange(total - chosen + 1, total + 1)).sum() - np.log(np.arange(1, chosen + 1)).sum()
    )


def whitened_products(gram: np.ndarray, d: int) -> np.ndarray:
    """Products x_i' C^-1 x_j of m centered rows of d features, from their Gram matrix (m, m).

    C is the covariance (divided by m) shrunk toward its mean variance, C = (1 - s) S + s mu I, by Ledoit and Wolf's
    strength s. With X the rows, X C^-1 X' = G (a G + b I)^-1, a = (1 - s) / m and b = s mu.
    """
    m = len(gram)
    mu = np.trace(gram) / (m * d)
    if mu == 0:
        return np.zeros_like(gram)
    squared = (gram**2).sum() / m**2
    spread = squared - d * mu**2
    noise = (np.diag(gram) ** 2).sum() / m**2 - squared / m
    strength = float(np.clip(noise / spread, 1e-6, 1)) if spread > 0 else 1.0
    system = (1 - strength) / m * gram + strength * mu * np.eye(m)
    return np.asarray(np.linalg.solve(system, gram))
