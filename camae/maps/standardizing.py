"""Column-wise batch correction: centering and scaling."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from camae.maps.affine import Affine, Alignment, fit_rows
from camae.maps.arrays import namespace, rows
from camae.maps.spectral import safe_scale


@dataclass
class Standardize(Alignment):
    """(x - mean) / population std, per batch when batch= is given, over the controls when control= is given.

    Constant columns are centered and left unscaled.
    """

    method: ClassVar[str] = "standardize"
    scaled: ClassVar[bool] = True

    def _learn(
        self, x: Any, batch: np.ndarray | None, control: np.ndarray | None
    ) -> Iterator[tuple[str, Affine]]:
        self.rank_ = x.shape[1]
        for name, index in fit_rows(x, batch, control, needed=2 if self.scaled else 1):
            chosen = rows(x, index).astype(np.float64)
            mean = chosen.mean(axis=0)
            yield (
                name,
                Affine(mean, 1 / safe_scale(mean, chosen.std(axis=0)) if self.scaled else mean * 0 + 1),
            )


@dataclass
class Center(Standardize):
    """x - mean, per batch when batch= is given, over the controls when control= is given."""

    method: ClassVar[str] = "center"
    scaled: ClassVar[bool] = False


@dataclass
class RobustizeMAD(Alignment):
    """(x - median) / (1.4826 MAD + eps), per batch (plate) when batch= is given, over the controls with control=.

    The factor makes the median absolute deviation equal the standard deviation of a normal distribution.
    """

    method: ClassVar[str] = "robustize_mad"
    eps: float = 1e-18

    def _learn(
        self, x: Any, batch: np.ndarray | None, control: np.ndarray | None
    ) -> Iterator[tuple[str, Affine]]:
        self.rank_ = x.shape[1]
        xp = namespace(x)
        for name, index in fit_rows(x, batch, control, needed=2):
            chosen = rows(x, index).astype(np.float64)
            median = xp.median(chosen, axis=0)
            spread = MAD_TO_STD * xp.median(xp.abs(chosen - median), axis=0)
            yield name, Affine(median, 1 / safe_scale(median, spread + self.eps))


MAD_TO_STD = (
    1.4826  # 1 / the 75th percentile of the standard normal distribution, to the digits in common use
)
