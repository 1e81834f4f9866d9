"""Batch correction: the rows of the paper's Table 2, and the variants the field uses beside them.

Sources: TVN: Ando et al. 2017 (`TVNAndo`) and the form of the EFAAR benchmarking code of Celik et al. (`TVN`).
All of them are fitted in fp64 and applied in the precision of the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from camae.errors import CamaeError
from camae.maps.affine import EVERY, Affine, Alignment
from camae.maps.arrays import embeddings, groups, namespace, rows
from camae.maps.spectral import Moments, inverse_root, moments, principal_axes, safe_scale

RTOL = 1e-6  # singular values under RTOL * the largest carry rounding noise, not biology: 1e-12 in variance


def align(x: Any, method: str, batch: Any = None, control: Any = None, **options: Any) -> Any:
    """Align embeddings and return only the array (the object forms below keep what was learned).

    x: (n, d) NumPy or CuPy. method: one of `METHODS`. batch: n labels (plate or experiment). control: n booleans,
    True for negative controls. options: those of the method's class, e.g. components=, eps=.
    Returns (n, k) in x's namespace and dtype. Raises CamaeError for an unknown method or unusable input.
    """
    key = method.lower().replace("-", "_").replace("standardise", "standardize").replace("+", "_")
    if key not in METHODS:
        raise CamaeError(f"Unknown alignment '{method}'; choose one of {', '.join(METHODS)}.")
    if key == "none":
        return embeddings(x)
    try:
        aligner = METHODS[key](**options)
    except TypeError as error:
        raise CamaeError(f"Alignment '{method}' has no such option: {error}.") from None
    return aligner.fit_transform(x, batch=batch, control=control)


class Standardize(Alignment):
    """(x - mean) / population std, per batch when batch= is given, over the controls when control= is given.

    Constant columns are centred and left unscaled.
    """

    method = "standardize"
    scaled = True

    def _learn(
        self, x: Any, batch: np.ndarray | None, control: np.ndarray | None
    ) -> Iterator[tuple[str, Affine]]:
        self.rank_ = x.shape[1]
        for name, index in _fit_rows(x, batch, control, needed=2 if self.scaled else 1):
            chosen = rows(x, index).astype(np.float64)
            mean = chosen.mean(axis=0)
            yield (
                name,
                Affine(mean, 1 / safe_scale(mean, chosen.std(axis=0)) if self.scaled else mean * 0 + 1),
            )


class Center(Standardize):
    """x - mean, per batch when batch= is given, over the controls when control= is given."""

    method = "center"
    scaled = False


class PCA(Alignment):
    """Principal components of the controls (of all rows without control=), centred, in falling order of variance.

    components: how many are kept (all by default). Components under `rtol` of the largest singular value, and
    those beyond n - 1 of the n fitted rows, are null: they are dropped and the rank is reported in `rank_`.
    """

    method = "pca"

    def __init__(self, components: int | None = None, rtol: float = RTOL) -> None:
        super().__init__()
        self.components, self.rtol = components, rtol

    def _axes(self, x: Any, control: np.ndarray | None) -> tuple[Any, Any, Any]:
        ((_, index),) = _fit_rows(x, None, control, needed=2)
        total = moments(rows(x, index))
        axes_DK, spread_K = principal_axes(total, self.rtol, self.components, self.method)
        self.rank_ = axes_DK.shape[1]
        return total.mean, axes_DK, spread_K

    def _learn(
        self, x: Any, batch: np.ndarray | None, control: np.ndarray | None
    ) -> Iterator[tuple[str, Affine]]:
        mean_D, axes_DK, _ = self._axes(x, control)
        yield EVERY, Affine(mean_D, axes_DK)


class PCAStandardize(PCA):
    """PCA, then (y - mean) / std of the components per batch: the OpenPhenom card's recommendation.

    Both steps are fitted on the controls when control= is given, else on all rows.
    """

    method = "pca_standardize"

    def _learn(
        self, x: Any, batch: np.ndarray | None, control: np.ndarray | None
    ) -> Iterator[tuple[str, Affine]]:
        mean_D, axes_DK, _ = self._axes(x, control)
        for name, index in _fit_rows(x, batch, control, needed=2):
            chosen = rows(x, index).astype(np.float64)
            offset_D = chosen.mean(axis=0)
            std_K = ((chosen - offset_D) @ axes_DK).std(axis=0)
            yield name, Affine(offset_D, axes_DK / safe_scale((offset_D - mean_D) @ axes_DK, std_K))


class TVN(Alignment):
    """Typical variation normalisation, EFAAR form: every step is fitted on the negative controls.

    (1) centre and scale, (2) full PCA, (3) centre and scale again, (4) per batch multiply by
    (Cov_b + eps I)^(-1/2), Cov_b of the batch's controls with ddof 1. No per-batch centring, no re-colouring.
    Null components of step 2 (under `rtol` of the largest singular value, or beyond n_controls - 1) are dropped:
    rescaling them in step 3 would blow rounding noise up to hold all of the norm. `rank_` reports what is left.
    Without batch= step 4 is left out: over all controls together it would only be a common factor.
    """

    method = "tvn"

    def __init__(self, eps: float = 0.5, rtol: float = RTOL, components: int | None = None) -> None:
        super().__init__()
        self.eps, self.rtol, self.components = eps, rtol, components

    def _whitener(self, x: Any, control: np.ndarray | None) -> tuple[Any, Any]:
        """Steps 1 to 3 as one map: offset_D, matrix_DK."""
        if control is None:
            raise CamaeError(
                f"{self.method} is fitted on negative controls; give control= with one boolean per row."
            )
        ((_, index),) = _fit_rows(x, None, control, needed=2)
        total = moments(rows(x, index))
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
        for name, index in _fit_rows(x, batch, control, needed=2):
            controls_NK = (rows(x, index).astype(np.float64) - offset_D) @ white_DK
            yield name, Affine(offset_D, inverse_root(white_DK, controls_NK, self.eps))


def _fit_rows(
    x: Any, batch: np.ndarray | None, control: np.ndarray | None, needed: int
) -> Iterator[tuple[str, np.ndarray]]:
    """(batch, rows to fit on) for each batch; CamaeError when a batch has fewer than `needed`."""
    kind = "rows" if control is None else "negative controls"
    if control is not None and not control.any():
        raise CamaeError("No row is marked as a negative control; check the control= mask.")
    if batch is None:
        names, members = np.array([EVERY]), [np.arange(x.shape[0])]
    else:
        names, members = groups(batch)
    chosen = [index if control is None else index[control[index]] for index in members]
    for name, index in zip(names.tolist(), chosen, strict=True):
        if len(index) < needed:
            where = f"Batch '{name}'" if name != EVERY else "The table"
            raise CamaeError(
                f"{where} has {len(index)} {kind}, at least {needed} are needed; leave the batch out, or align "
                "by a larger unit such as the experiment."
            )
    yield from zip(names.tolist(), chosen, strict=True)


METHODS: dict[str, Any] = {
    "none": None,
    "center": Center,
    "standardize": Standardize,
    "pca": PCA,
    "pca_standardize": PCAStandardize,
    "tvn": TVN,
}
__all__ = ["METHODS", "PCA", "TVN", "Center", "PCAStandardize", "Standardize", "align"]
