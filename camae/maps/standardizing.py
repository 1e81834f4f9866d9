"""Column-wise alignment: centering and scaling each feature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from camae.maps.affine import Affine, Alignment, BatchMaps, Magnitude, fit_rows
from camae.maps.arrays import Array, namespace, rows
from camae.maps.spectral import safe_scale

# 1 / the 75th percentile of the standard normal distribution, to the digits in common use.
MAD_TO_STD = 1.4826


@dataclass
class Standardize(Alignment):
    """Standardization of each feature: (x - mean) / std, std the population standard deviation (ddof 0).

    Mean and std are those of the batch's rows with ``batch=``, of the negative controls with ``control=``, of the
    batch's controls with both, else of all rows. Columns that are constant there, up to the rounding of embeddings
    at the column's scale (`camae.maps.spectral.ROUNDING` times its mean absolute value over the whole batch), are
    centered and left unscaled, with a warning.

    Raises
    ------
    CamaeError
        From `fit`, when a batch has fewer than two rows to fit on.

    References
    ----------
    Kraus et al. (CVPR 2024), Table 2, "Standardize by plate" and "by experiment".
    """

    method: ClassVar[str] = "standardize"
    scaled: ClassVar[bool] = True

    def _learn(
        self, x: Array, batch: np.ndarray | None, control: np.ndarray | None, magnitude: Magnitude
    ) -> BatchMaps:
        self.rank_ = x.shape[1]
        for name, index in fit_rows(x, batch, control, needed=2 if self.scaled else 1):
            chosen = rows(x, index).astype(np.float64)
            mean = chosen.mean(axis=0)
            scale = mean * 0 + 1
            if self.scaled:
                std = chosen.std(axis=0)
                self._note_constant(name, std, magnitude(name))
                scale = 1 / safe_scale(std, magnitude(name))
            yield name, Affine(mean, scale)


@dataclass
class Center(Standardize):
    """Centering of each feature: x - mean.

    The mean is that of the batch's rows with ``batch=``, of the negative controls with ``control=``, of the batch's
    controls with both, else of all rows.

    References
    ----------
    Kraus et al. (CVPR 2024), Table 2, "Center by plate" and "by experiment".
    """

    method: ClassVar[str] = "center"
    scaled: ClassVar[bool] = False


@dataclass
class RobustizeMAD(Alignment):
    """Robust standardization of each feature: (x - median) / (1.4826 MAD + eps).

    MAD is the median absolute deviation from the median; the factor makes it equal the standard deviation of a
    normal distribution. Rows and constant columns as in `Standardize`.

    Parameters
    ----------
    eps : float
        Added to the scale, in units of the feature.

    References
    ----------
    pycytominer, ``pycytominer.operations.RobustMAD``.
    """

    method: ClassVar[str] = "robustize_mad"
    eps: float = 1e-18

    def _learn(
        self, x: Array, batch: np.ndarray | None, control: np.ndarray | None, magnitude: Magnitude
    ) -> BatchMaps:
        self.rank_ = x.shape[1]
        xp = namespace(x)
        for name, index in fit_rows(x, batch, control, needed=2):
            chosen = rows(x, index).astype(np.float64)
            median = xp.median(chosen, axis=0)
            spread = MAD_TO_STD * xp.median(xp.abs(chosen - median), axis=0)
            self._note_constant(name, spread, magnitude(name))
            yield name, Affine(median, 1 / (safe_scale(spread, magnitude(name)) + self.eps))
