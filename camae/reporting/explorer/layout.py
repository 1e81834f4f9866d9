"""Layout of a perturbation map: positions in two dimensions, and the order of the rows of its heat map."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from camae.errors import CamaeError, MissingBackendError
from camae.reporting.ordering import cluster_order

LAYOUTS = ("auto", "pca", "umap")
GROUP = 400  # rows that `cluster_order` takes in well under a second
ROUNDS = 20  # of k-means
COSINE_ERROR = 5e-5  # largest error of a cosine from vectors with fewer axes

Floats = npt.NDArray[np.float32]


def check_layout(layout: str) -> None:
    """Raises CamaeError for an unknown layout, MissingBackendError when UMAP is asked for and not installed."""
    if layout not in LAYOUTS:
        raise CamaeError(f"unknown layout '{layout}'; choose one of {', '.join(LAYOUTS)}")
    if layout == "umap" and not _has_umap():
        raise MissingBackendError(
            "layout 'umap' needs the package umap-learn; pip install umap-learn, or 'pca'"
        )


def _has_umap() -> bool:
    try:
        import umap  # noqa: F401
    except ImportError:
        return False
    return True


def layouts(unit_ND: Floats, layout: str) -> dict[str, Floats]:
    """Positions (n, 2) by name of the layout, the one that is shown first in front.

    unit_ND: rows of unit length. "auto" is PCA, and UMAP as well where umap-learn is installed; UMAP needs more than
    15 rows, its default number of neighbors.
    """
    made = {}
    if layout == "umap" or (layout == "auto" and len(unit_ND) > 15 and _has_umap()):
        made["UMAP"] = _umap(unit_ND)
    if layout != "umap":
        made["PCA"] = _pca(unit_ND)
    return made


def _umap(unit_ND: Floats) -> Floats:
    import umap

    if len(unit_ND) <= 15:
        raise CamaeError(
            f"UMAP needs more than 15 perturbations, there are {len(unit_ND)}; choose layout 'pca'"
        )
    found = umap.UMAP(metric="cosine", random_state=0, n_jobs=1).fit_transform(unit_ND)
    return np.asarray(found, np.float32)


def _pca(unit_ND: Floats) -> Floats:
    """First two principal components; a map of fewer dimensions gets zeros for the others."""
    centered = unit_ND.astype(np.float64) - unit_ND.mean(axis=0, dtype=np.float64)
    scores = principal_axes(centered)[0][:, :2]
    out = np.zeros((len(unit_ND), 2), np.float32)
    out[:, : scores.shape[1]] = scores
    return out


def principal_axes(x_ND: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Rows in the axes of their second moments, widest first, and the squares along each axis.

    Inner products of rows stay as they are. Signs are fixed: the largest entry of each axis is positive.
    """
    n, d = x_ND.shape
    if d <= n:
        squares, axes = np.linalg.eigh(x_ND.T @ x_ND)
        scores = x_ND @ axes[:, ::-1]
    else:
        squares, left = np.linalg.eigh(x_ND @ x_ND.T)
        scores = left[:, ::-1] * np.sqrt(np.maximum(squares[::-1], 0.0))
    top = scores[np.abs(scores).argmax(axis=0), np.arange(scores.shape[1])]
    return scores * np.where(top < 0, -1.0, 1.0), np.maximum(squares[::-1], 0.0)


def compact(unit_ND: Floats) -> Floats:
    """Vectors of as few axes as keep every cosine within `COSINE_ERROR`, (n, k), k at least 1.

    Two rows lose r_i . r_j of their cosine, r the part along the axes left out, which is at most the larger |r|^2.
    """
    scores, _ = principal_axes(unit_ND.astype(np.float64))
    kept = np.cumsum(scores**2, axis=1)
    worst = (kept[:, -1:] - kept).max(axis=0)
    return scores[:, : max(1, int((worst > COSINE_ERROR).sum()) + 1)].astype(np.float32)


def heat_map_order(unit_ND: Floats) -> npt.NDArray[np.int64]:
    """Order of the rows of a heat map: clusters side by side.

    More than `GROUP` rows are parted by spherical k-means first; groups, and the rows of each, are ordered by average
    linkage.
    """
    return np.concatenate(_ordered(unit_ND.astype(np.float64), np.arange(len(unit_ND))))


def _ordered(unit_ND: npt.NDArray[np.float64], rows: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    x = unit_ND[rows]
    if len(rows) <= GROUP:
        return [rows[cluster_order(x @ x.T)]]
    groups = _parted(x, min(GROUP, 4 * -(-len(rows) // GROUP)))
    if len(groups) == 1:  # rows that are all alike have no order
        return [rows]
    center = np.stack([_unit(x[group].mean(axis=0)) for group in groups])
    return [
        part for g in cluster_order(center @ center.T) for part in _ordered(unit_ND, rows[np.sort(groups[g])])
    ]


def _parted(x: npt.NDArray[np.float64], count: int) -> list[npt.NDArray[np.int64]]:
    """At most `count` groups of rows by spherical k-means, from centers that are rows spread evenly over the table."""
    center = x[np.linspace(0, len(x) - 1, count).astype(int)]
    group = np.zeros(len(x), np.int64)
    for _ in range(ROUNDS):
        group = (x @ center.T).argmax(axis=1)
        total = np.zeros_like(center)
        np.add.at(total, group, x)
        center = np.apply_along_axis(_unit, 1, total)
    return [np.flatnonzero(group == g) for g in np.unique(group)]


def _unit(row: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return row / max(float(np.linalg.norm(row)), 1e-12)
