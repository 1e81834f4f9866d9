"""Batch correction that mixes columns: PCA, typical variation normalization, sphering.

Sources: Ando et al. 2017 (`TVNAndo`), the public EFAAR benchmarking code of Celik et al. (`TVN`), the pycytominer
documentation (`Spherize`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from camae.errors import CamaeError
from camae.maps.affine import EVERY, Affine, Alignment, LowRank, fit_rows
from camae.maps.arrays import namespace, rows
from camae.maps.spectral import Moments, inverse_root, moments, principal_axes, safe_scale, symmetric_power

RTOL = 1e-6  # singular values under RTOL * the largest carry rounding noise, not biology: 1e-12 in variance


@dataclass
class PCA(Alignment):
    """Principal components of the controls (of all rows without control=), centered, in falling order of variance.

    components: how many are kept (all by default). Components under `rtol` of the largest singular value, and
    those beyond n - 1 of the n fitted rows, are null: they are dropped and the rank is reported in `rank_`.
    """

    method: ClassVar[str] = "pca"

    components: int | None = None
    rtol: float = RTOL

    def _axes(self, x: Any, control: np.ndarray | None) -> tuple[Any, Any, Any]:
        ((_, index),) = fit_rows(x, None, control, needed=2)
        total = moments(x, index)
        axes_DK, spread_K = principal_axes(total, self.rtol, self.components, self.method)
        self.rank_ = axes_DK.shape[1]
        return total.mean, axes_DK, spread_K

    def _learn(
        self, x: Any, batch: np.ndarray | None, control: np.ndarray | None
    ) -> Iterator[tuple[str, Affine]]:
        mean_D, axes_DK, _ = self._axes(x, control)
        yield EVERY, Affine(mean_D, axes_DK)


@dataclass
class PCAStandardize(PCA):
    """PCA, then (y - mean) / std of the components per batch: the OpenPhenom card's recommendation.

    Both steps are fitted on the controls when control= is given, else on all rows.
    """

    method: ClassVar[str] = "pca_standardize"

    def _learn(
        self, x: Any, batch: np.ndarray | None, control: np.ndarray | None
    ) -> Iterator[tuple[str, Affine]]:
        mean_D, axes_DK, _ = self._axes(x, control)
        for name, index in fit_rows(x, batch, control, needed=2):
            chosen = rows(x, index).astype(np.float64)
            offset_D = chosen.mean(axis=0)
            std_K = ((chosen - offset_D) @ axes_DK).std(axis=0)
            yield name, Affine(offset_D, axes_DK / safe_scale((offset_D - mean_D) @ axes_DK, std_K))


@dataclass
class TVN(Alignment):
    """Typical variation normalization, EFAAR form: every step is fitted on the negative controls.

    (1) center and scale, (2) full PCA, (3) center and scale again, (4) per batch multiply by
    (Cov_b + eps I)^(-1/2), Cov_b of the batch's controls with ddof 1. No per-batch centering, no re-coloring.
    Null components of step 2 (under `rtol` of the largest singular value, or beyond n_controls - 1) are dropped:
    rescaling them in step 3 would blow rounding noise up to hold all of the norm. `rank_` reports what is left.
    Without batch= step 4 is left out: over all controls together it would only be a common factor.
    """

    method: ClassVar[str] = "tvn"

    eps: float = 0.5
    rtol: float = RTOL
    components: int | None = None

    def _whitener(self, x: Any, control: np.ndarray | None) -> tuple[Any, Any]:
        """Steps 1 to 3 as one map: offset_D, matrix_DK."""
        if control is None:
            raise CamaeError(
                f"{self.method} is fitted on negative controls; give control= with one boolean per row."
            )
        ((_, index),) = fit_rows(x, None, control, needed=2)
        total = moments(x, index)
        scale_D = safe_scale(total.mean, namespace(x).sqrt(total.variance))
        scaled = Moments(total.count, total.mean, total.covariance / scale_D / scale_D[:, None])
        axes_DK, spread_K = principal_axes(scaled, self.rtol, self.components, self.method)
        self.rank_ = axes_DK.shape[1]
        return total.mean, axes_DK / scale_D[:, None] / spread_K

    def _learn(
        self, x: Any, batch: np.ndarray | None, control: np.ndarray | None
    ) -> Iterator[tuple[str, Affine]]:
        offset_D, white_DK = self._whitener(x, control)
        if batch is None:
            yield EVERY, Affine(offset_D, white_DK)
            return
        for name, index in fit_rows(x, batch, control, needed=2):
            controls_NK = (rows(x, index).astype(np.float64) - offset_D) @ white_DK
            yield name, Affine(offset_D, white_DK, LowRank(*inverse_root(controls_NK, self.eps)))


@dataclass
class TVNAndo(TVN):
    """TVN as published by Ando et al.: the controls are centered and scaled again per batch, and re-colored.

    Steps 1 and 2 as in `TVN`; (3) center and scale the components on each batch's controls; (4) per batch multiply
    by (Cov_b + eps I)^(-1/2) (Cov_all + eps I)^(1/2), Cov_all of all controls after step 3, both with ddof 1.
    """

    method: ClassVar[str] = "tvn_ando"

    def _learn(
        self, x: Any, batch: np.ndarray | None, control: np.ndarray | None
    ) -> Iterator[tuple[str, Affine]]:
        offset_D, white_DK = self._whitener(x, control)
        per_batch: list[tuple[str, Any, Any, Any]] = []
        scatter_KK, count = 0.0, 0
        for name, index in fit_rows(x, batch, control, needed=2):
            chosen_NK = (rows(x, index).astype(np.float64) - offset_D) @ white_DK
            mean_K = chosen_NK.mean(axis=0)
            chosen_NK = chosen_NK - mean_K
            scale_K = safe_scale(mean_K, chosen_NK.std(axis=0))
            chosen_NK = chosen_NK / scale_K
            scatter_KK = scatter_KK + chosen_NK.T @ chosen_NK
            count += len(index)
            per_batch.append((name, rows(x, index).astype(np.float64).mean(axis=0), scale_K, chosen_NK))
        color_KK = symmetric_power(scatter_KK / (count - 1), self.eps, 0.5)
        for name, mean_D, scale_K, chosen_NK in per_batch:
            root = LowRank(*inverse_root(chosen_NK, self.eps))
            yield name, Affine(mean_D, root.right_of(white_DK / scale_K) @ color_KK)


@dataclass
class Spherize(Alignment):
    """Sphering: (x - mean) @ V diag(sqrt(n - 1) / (s + eps)), s and V of the n controls (all rows without control=).

    s are singular values, as pycytominer has it. kind: "PCA" leaves the components in falling order, "ZCA" turns
    them back to the columns; "PCA-cor" and "ZCA-cor" standardize the columns first (ddof 1). Per batch when batch=
    is given. Needs no n x n matrix. Unlike there, null components are dropped (ZCA: projected out), not divided
    by eps, which would let rounding noise hold all of the norm.
    """

    method: ClassVar[str] = "spherize"
    kind: str = "ZCA"
    eps: float = 1e-6
    rtol: float = RTOL

    def _learn(
        self, x: Any, batch: np.ndarray | None, control: np.ndarray | None
    ) -> Iterator[tuple[str, Affine]]:
        if self.kind not in ("ZCA", "PCA", "ZCA-cor", "PCA-cor"):
            raise CamaeError(f"Unknown kind of sphering '{self.kind}'; choose ZCA, PCA, ZCA-cor or PCA-cor.")
        xp = namespace(x)
        for name, index in fit_rows(x, batch, control, needed=2):
            total = moments(x, index)
            unbiased = total.count / (total.count - 1)
            scale_D = xp.ones_like(total.mean)
            if self.kind.endswith("cor"):
                scale_D = safe_scale(total.mean, xp.sqrt(total.variance * unbiased))
            scaled = Moments(
                total.count, total.mean, total.covariance * unbiased / scale_D / scale_D[:, None]
            )
            axes_DK, spread_K = principal_axes(scaled, self.rtol, None, self.method)
            matrix = axes_DK / (spread_K + self.eps / (total.count - 1) ** 0.5)
            if self.kind.startswith("ZCA"):
                matrix = matrix @ axes_DK.T
            self._same_rank(matrix.shape[1], name)
            yield name, Affine(total.mean, matrix / scale_D[:, None])

    def _same_rank(self, rank: int, name: str) -> None:
        if self.rank_ not in (0, rank):
            raise CamaeError(
                f"Batch '{name}' has {rank} dimensions of variation and an earlier one {self.rank_}; use a ZCA "
                "kind, or sphere all batches together."
            )
        self.rank_ = rank
