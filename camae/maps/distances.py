"""Similarity of profiles by which queries are ranked: cosine, correlation or Euclidean distance."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np

from camae.errors import CamaeError
from camae.maps.arrays import Array, namespace, to_numpy, unit_rows

Distance: TypeAlias = Literal["cosine", "correlation", "euclidean"]
DISTANCES: tuple[Distance, ...] = ("cosine", "correlation", "euclidean")
# Similarities closer than this count as tied under ties="expected": rounding must not rank identical profiles.
TIE_GRID = {4: 2.0**20, 8: 2.0**40}


def check_distance(distance: str) -> None:
    """Raise CamaeError for an unknown distance."""
    if distance not in DISTANCES:
        raise CamaeError(f"unknown distance '{distance}'; choose one of {', '.join(DISTANCES)}")


class Similarities:
    """Similarities of queries to all profiles, in blocks; the larger, the more alike.

    cosine: of the rows as they are. correlation: cosine of the rows less their mean over features (Pearson's).
    euclidean: minus the squared distance, in fp64, in units of the query's and the median profile's squared length
    about the mean profile. absolute: of the cosine or correlation.
    Raises CamaeError for another distance, or absolute with Euclidean distances.
    """

    def __init__(self, x: Array, distance: Distance = "cosine", absolute: bool = False) -> None:
        check_distance(distance)
        if absolute and distance == "euclidean":
            raise CamaeError(
                "absolute=True ranks by the size of a cosine or correlation; a Euclidean distance has no sign"
            )
        self.absolute, self.squares = absolute, None
        if distance == "euclidean":
            self.x = x.astype(np.float64)
            self.x = self.x - self.x.mean(axis=0)
            self.squares = (self.x**2).sum(axis=1)
            self.typical = float(np.median(to_numpy(self.squares)))
            return
        self.x = unit_rows(x if distance == "cosine" else x - x.mean(axis=1, keepdims=True))

    @property
    def grid(self) -> float:
        """Steps of a similarity of 1, below which two are tied."""
        return TIE_GRID[self.x.dtype.itemsize]

    def block(self, profile: Array) -> Array:
        """Similarities (queries, n) of the rows `profile` (device indices)."""
        product: Array = self.x[profile] @ self.x.T
        if self.squares is None:
            return namespace(product).abs(product) if self.absolute else product
        own = self.squares[profile][:, None]
        xp = namespace(product)
        distance: Array = xp.maximum(own + self.squares[None] - 2 * product, 0)
        unit = own + self.typical
        return -distance / xp.where(unit > 0, unit, 1.0)
