"""From replicate embeddings to one vector for each perturbation."""

from __future__ import annotations

from typing import Any

import numpy as np

from camae.errors import CamaeError
from camae.maps.arrays import embeddings, groups, labels, listing, mask, namespace, rows, unit_rows

ROWS = 16_384  # rows of a running sum in fp64
AGGREGATIONS = ("mean", "median", "spherical_mean")


def aggregate(
    z: Any,
    by: Any,
    method: str = "spherical_mean",
    control: Any = None,
    origin: Any = None,
    min_replicates: int = 1,
) -> Any:
    """One vector for each distinct label of `by`, in the order of `perturbation_names(by)` (sorted labels).

    z: (n, d). by: n labels (a perturbation, or the guide first and the gene in a second call). method: "mean",
    "median" or "spherical_mean" (rows made unit length, averaged, made unit length again: paper, section 5.1).
    control: n booleans; the mean of these rows is the origin and is subtracted first. The rows of the controls are
    aggregated like any other label, so that names and rows always correspond. origin: (d,) vector used instead.
    min_replicates: labels with fewer rows are left out, here and in `perturbation_names`.
    Returns (number of labels, d) in z's namespace and dtype. Raises CamaeError for unusable input, or when no label
    has enough replicates.
    """
    if method not in AGGREGATIONS:
        raise CamaeError(f"Unknown aggregation '{method}'; choose one of {', '.join(AGGREGATIONS)}.")
    z = embeddings(z, "z")
    xp = namespace(z)
    by_N = labels(by, z.shape[0], "by")
    if control is not None and origin is None:
        origin = control_mean(z, control)
    if origin is not None:
        z = z - xp.asarray(origin, dtype=z.dtype)
    if method == "spherical_mean":
        z = unit_rows(z)
    kept = set(perturbation_names(by_N, min_replicates).tolist())
    names, members = groups(by_N)
    members = [index for name, index in zip(names.tolist(), members, strict=True) if name in kept]
    if method == "median":
        return xp.stack([xp.median(rows(z, index), axis=0) for index in members])
    mean = group_means(z, members)
    return unit_rows(mean) if method == "spherical_mean" else mean


def perturbation_names(by: Any, min_replicates: int = 1) -> np.ndarray:
    """The labels that the rows of `aggregate(..., by=by)` stand for: distinct, sorted as text.

    Raises CamaeError when no label has `min_replicates` rows.
    """
    names, counts = np.unique(labels(by, len(by), "by"), return_counts=True)
    if not (counts >= min_replicates).any():
        raise CamaeError(
            f"No perturbation has {min_replicates} replicates (the most is {counts.max()}: "
            f"{listing(names[counts == counts.max()])}); lower min_replicates."
        )
    return names[counts >= min_replicates]


def control_mean(z: Any, control: Any) -> Any:
    """The mean of the control rows (d,), summed in fp64. Raises CamaeError when no row is a control."""
    chosen = np.flatnonzero(mask(control, z.shape[0], "control"))
    if len(chosen) == 0:
        raise CamaeError("No row is marked as a negative control; check the control= mask.")
    return rows(z, chosen).mean(axis=0, dtype=np.float64).astype(z.dtype)


def group_means(z: Any, members: list[np.ndarray]) -> Any:
    """Mean of each group of rows, (groups, d) in z's dtype, summed in fp64: differences of a running sum.

    Groups go through in chunks of about `ROWS` rows, so that the running sum stays small.
    """
    xp = namespace(z)
    sizes = np.array([len(index) for index in members])
    chunk_G = (np.cumsum(sizes) - sizes) // ROWS
    parts = []
    for chunk in np.unique(chunk_G):
        first, last = np.searchsorted(chunk_G, [chunk, chunk + 1])
        total = xp.cumsum(rows(z, np.concatenate(members[first:last])), axis=0, dtype=np.float64)
        total = total[xp.asarray(np.cumsum(sizes[first:last]) - 1)]
        total[1:] -= total[:-1].copy()
        parts.append((total / xp.asarray(sizes[first:last])[:, None]).astype(z.dtype))
    return xp.concatenate(parts)
