"""Alignment that mixes features: principal components, typical variation normalization, sphering.

Sources: Ando et al. 2017 (`TVNAndo`), the public EFAAR benchmarking code of Celik et al. (`TVN`), the pycytominer
documentation (`Spherize`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from camae.errors import CamaeError
from camae.maps.affine import EVERY, Affine, Alignment, BatchMaps, LowRank, Magnitude, batch_name, fit_rows
from camae.maps.arrays import Array, namespace, rows
from camae.maps.spectral import (
    Moments,
    inverse_root,
    magnitude_along,
    moments,
    principal_axes,
    safe_scale,
    symmetric_power,
    weight_scale,
)

RTOL = 1e-6  # singular values under RTOL * the largest carry rounding noise, not biology: 1e-12 in variance
KINDS = ("ZCA", "PCA", "ZCA-cor", "PCA-cor")


@dataclass
class PCA(Alignment):
    """Principal component analysis, fitted on the negative controls (on all rows without ``control=``).

    Rows are centered and projected on the eigenvectors of the covariance, in falling order of variance. ``batch=``
    is not used.

    Parameters
    ----------
    components : int, optional
        How many components are kept; all by default.
    rtol : float
        Components whose singular value is under `rtol` times the largest, and those beyond n - 1 of the n fitted
        rows, are null components (rounding noise): they are dropped with a warning. `rank_` reports what is left.

    References
    ----------
    Kraus et al. (CVPR 2024), Table 2, "PCA".
    """

    method: ClassVar[str] = "pca"

    components: int | None = None
    rtol: float = RTOL

    def _axes(self, x: Array, control: np.ndarray | None, magnitude: Magnitude) -> tuple[Array, Array]:
        """mean_D and axes_DK."""
        ((_, index),) = fit_rows(x, None, control, needed=2)
        total = moments(x, index)
        axes_DK, _ = principal_axes(total, self.rtol, self.components, self.method, magnitude(EVERY))
        self.rank_ = axes_DK.shape[1]
        return total.mean, axes_DK

    def _learn(
        self, x: Array, batch: np.ndarray | None, control: np.ndarray | None, magnitude: Magnitude
    ) -> BatchMaps:
        mean_D, axes_DK = self._axes(x, control, magnitude)
        yield EVERY, Affine(mean_D, axes_DK)


@dataclass
class PCAStandardize(PCA):
    """Principal component analysis over all batches, then standardization of the components within each batch.

    Both steps are fitted on the controls when ``control=`` is given, else on all rows. Options are those of `PCA`.

    References
    ----------
    Kraus et al. (CVPR 2024), Table 2, "PCA+Standardize"; the model card of OpenPhenom recommends it.
    """

    method: ClassVar[str] = "pca_standardize"

    def _learn(
        self, x: Array, batch: np.ndarray | None, control: np.ndarray | None, magnitude: Magnitude
    ) -> BatchMaps:
        _, axes_DK = self._axes(x, control, magnitude)
        for name, index in fit_rows(x, batch, control, needed=2):
            chosen = rows(x, index).astype(np.float64)
            offset_D = chosen.mean(axis=0)
            std_K = ((chosen - offset_D) @ axes_DK).std(axis=0)
            size_K = magnitude_along(axes_DK, magnitude(name))
            self._note_constant(name, std_K, size_K)
            yield name, Affine(offset_D, axes_DK / safe_scale(std_K, size_K))


@dataclass
class TVN(Alignment):
    """Typical variation normalization (TVN): what varies among negative controls is made equal in all batches.

    Controls differ by technical (typical) variation alone. TVN scales its directions to unit variance, so that the
    strong ones no longer dominate cosines, and gives the controls of each batch the same covariance. Every step is
    fitted on the negative controls:

    1. center and scale each feature over all controls;
    2. project on all principal components of the controls;
    3. center and scale each component over all controls;
    4. within each batch b, multiply by (Cov_b + eps I)^(-1/2), Cov_b the covariance (ddof 1) of the batch's controls.

    Parameters
    ----------
    eps : float
        Added to the variances in step 4, where they are near 1; keeps small batches from blowing up noise. 0 needs
        more controls than components in every batch.
    rtol : float
        Null components of step 2 (singular value under `rtol` times the largest, or beyond n_controls - 1) are
        dropped with a warning: step 3 would blow their rounding noise up to hold all of the norm. `rank_` reports
        what is left. Features that are constant among the controls, as in `Standardize`, carry no weight.
    components : int, optional
        How many components of step 2 are kept; all by default.

    Raises
    ------
    CamaeError
        From `fit`, without ``control=``, when a batch has fewer than two controls, or for eps=0 where the controls of
        a batch do not span the components.

    Notes
    -----
    This is the form of the EFAAR benchmarking code: there is no centering within a batch and no re-coloring (see
    `TVNAndo`). Without ``batch=`` step 4 is left out: over all controls together it would only be a common factor.

    References
    ----------
    Ando et al. 2017, "Improving Phenotypic Measurements in High-Content Imaging Screens"; Celik et al. 2024
    (EFAAR); Kraus et al. (CVPR 2024), Table 2, "TVN".
    """

    method: ClassVar[str] = "tvn"

    eps: float = 0.5
    rtol: float = RTOL
    components: int | None = None

    def _whitener(self, x: Array, control: np.ndarray | None, magnitude: Magnitude) -> tuple[Array, Array]:
        """Steps 1 to 3 as one map: offset_D, matrix_DK."""
        if control is None:
            raise CamaeError(
                f"{self.method} is fitted on negative controls; give control= with one boolean per row"
            )
        ((_, index),) = fit_rows(x, None, control, needed=2)
        total = moments(x, index)
        std_D = namespace(x).sqrt(total.variance)
        self._note_constant(EVERY, std_D, magnitude(EVERY))
        scale_D = weight_scale(std_D, magnitude(EVERY))
        scaled = Moments(total.count, total.mean, total.covariance / scale_D / scale_D[:, None])
        axes_DK, spread_K = principal_axes(
            scaled, self.rtol, self.components, self.method, magnitude(EVERY) / scale_D
        )
        self.rank_ = axes_DK.shape[1]
        return total.mean, axes_DK / scale_D[:, None] / spread_K

    def _learn(
        self, x: Array, batch: np.ndarray | None, control: np.ndarray | None, magnitude: Magnitude
    ) -> BatchMaps:
        offset_D, white_DK = self._whitener(x, control, magnitude)
        if batch is None:
            yield EVERY, Affine(offset_D, white_DK)
            return
        for name, index in fit_rows(x, batch, control, needed=2):
            controls_NK = (rows(x, index).astype(np.float64) - offset_D) @ white_DK
            root = LowRank(*inverse_root(controls_NK, self.eps, f"{self.method}, {batch_name(name)}"))
            yield name, Affine(offset_D, white_DK, root)


@dataclass
class TVNAndo(TVN):
    """Typical variation normalization as Ando et al. published it: by-batch standardization and re-coloring.

    Steps 1 and 2 are those of `TVN`, then

    3. center and scale each component over the controls of each batch;
    4. within each batch b, multiply by (Cov_b + eps I)^(-1/2) (Cov_all + eps I)^(1/2), Cov_all the covariance of all
       controls after step 3, both with ddof 1 (the second factor re-colors: it restores the common covariance, as
       CORAL does).

    Options and errors are those of `TVN`.

    References
    ----------
    Ando et al. 2017, "Improving Phenotypic Measurements in High-Content Imaging Screens".
    """

    method: ClassVar[str] = "tvn_ando"

    def _learn(
        self, x: Array, batch: np.ndarray | None, control: np.ndarray | None, magnitude: Magnitude
    ) -> BatchMaps:
        offset_D, white_DK = self._whitener(x, control, magnitude)
        per_batch: list[tuple[str, Array, Array, Array]] = []
        scatter_KK = namespace(x).zeros((white_DK.shape[1],) * 2)
        count = 0
        for name, index in fit_rows(x, batch, control, needed=2):
            chosen_NK = (rows(x, index).astype(np.float64) - offset_D) @ white_DK
            mean_K = chosen_NK.mean(axis=0)
            chosen_NK = chosen_NK - mean_K
            scale_K = safe_scale(chosen_NK.std(axis=0), magnitude_along(white_DK, magnitude(name)))
            chosen_NK = chosen_NK / scale_K
            scatter_KK = scatter_KK + chosen_NK.T @ chosen_NK
            count += len(index)
            per_batch.append((name, rows(x, index).astype(np.float64).mean(axis=0), scale_K, chosen_NK))
        color_KK = symmetric_power(scatter_KK / (count - 1), self.eps, 0.5)
        for name, mean_D, scale_K, chosen_NK in per_batch:
            root = LowRank(*inverse_root(chosen_NK, self.eps, f"{self.method}, {batch_name(name)}"))
            yield name, Affine(mean_D, root.right_of(white_DK / scale_K) @ color_KK)


@dataclass
class Spherize(Alignment):
    """Sphering (whitening): the negative controls get the identity as their covariance.

    (x - mean) @ V diag(sqrt(n - 1) / (s + eps)), with s the singular values and V the right singular vectors of the
    n centered controls (of all rows without ``control=``), for each batch with ``batch=``.

    Parameters
    ----------
    kind : {"ZCA", "PCA", "ZCA-cor", "PCA-cor"}
        "PCA" leaves the components in falling order of variance, "ZCA" turns them back to the features; the "-cor"
        kinds standardize the features first (ddof 1).
    eps : float
        Added to the singular values.
    rtol : float
        Singular values under `rtol` times the largest are null.

    Raises
    ------
    CamaeError
        From `fit`, for an unknown kind, or when batches differ in rank under a "PCA" kind.

    Notes
    -----
    Null components are dropped (ZCA: projected out). pycytominer divides them by `eps`, which lets rounding noise
    hold all of the norm.

    References
    ----------
    Kessy et al. 2018, "Optimal Whitening and Decorrelation"; pycytominer, ``pycytominer.operations.Spherize``.
    """

    method: ClassVar[str] = "spherize"
    kind: str = "ZCA"
    eps: float = 1e-6
    rtol: float = RTOL

    def _learn(
        self, x: Array, batch: np.ndarray | None, control: np.ndarray | None, magnitude: Magnitude
    ) -> BatchMaps:
        if self.kind not in KINDS:
            raise CamaeError(f"unknown kind of sphering '{self.kind}'; choose one of {', '.join(KINDS)}")
        xp = namespace(x)
        for name, index in fit_rows(x, batch, control, needed=2):
            total = moments(x, index)
            unbiased = total.count / (total.count - 1)
            scale_D = xp.ones_like(total.mean)
            if self.kind.endswith("cor"):
                std_D = xp.sqrt(total.variance * unbiased)
                self._note_constant(name, std_D, magnitude(name))
                scale_D = weight_scale(std_D, magnitude(name))
            scaled = Moments(
                total.count, total.mean, total.covariance * unbiased / scale_D / scale_D[:, None]
            )
            axes_DK, spread_K = principal_axes(
                scaled, self.rtol, None, self.method, magnitude(name) / scale_D
            )
            matrix = axes_DK / (spread_K + self.eps / (total.count - 1) ** 0.5)
            if self.kind.startswith("ZCA"):
                matrix = matrix @ axes_DK.T
            self._check_rank(matrix.shape[1], name)
            yield name, Affine(total.mean, matrix / scale_D[:, None])

    def _check_rank(self, rank: int, name: str) -> None:
        if self.rank_ not in (0, rank):
            raise CamaeError(
                f"batch '{name}' has {rank} dimensions of variation and an earlier one {self.rank_}; use a ZCA "
                "kind, or sphere all batches together"
            )
        self.rank_ = rank
