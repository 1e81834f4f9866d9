"""Aggregation of replicates: from embeddings of wells to one vector for each perturbation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from camae.errors import CamaeError
from camae.maps.arrays import Array, Labels, Mask, groups, namespace, rows, takes_tensors, unit_rows
from camae.maps.inputs import COUNT, check_number, control_rows, embeddings, labels, listing, origin_of

ROWS = 16_384  # rows of a running sum in fp64
AGGREGATIONS = ("mean", "median", "spherical_mean")


@takes_tensors
def aggregate(
    z: Array,
    by: Labels,
    method: str = "spherical_mean",
    control: Mask | None = None,
    origin: npt.ArrayLike | None = None,
    min_replicates: int = 1,
) -> Array:
    """Aggregate replicates: one vector for each distinct label.

    Parameters
    ----------
    z : (n, d) array
        Aligned embeddings, NumPy, CuPy or torch, fp32 or fp64.
    by : n labels
        Perturbation of each row. (For two levels, aggregate by guide first and the result by gene.)
    method : {"spherical_mean", "mean", "median"}
        The spherical mean averages directions: rows are scaled to unit length, averaged, and scaled to unit length
        again, so that a bright replicate weighs no more than a dim one.
    control : n booleans, optional
        Negative controls. Their mean becomes the origin and is subtracted first, so that a vector points from the
        unperturbed state to the perturbed one. The controls themselves are aggregated like any other label.
    origin : (d,) array, optional
        Origin to subtract in place of the controls' mean.
    min_replicates : int
        Labels with fewer rows are left out, here and in `perturbation_names`.

    Returns
    -------
    (m, d) array
        One row for each label in the order of `perturbation_names(by, min_replicates)`, in z's namespace and dtype.

    Raises
    ------
    CamaeError
        For an unknown method, unusable input, or when no label has enough replicates.

    References
    ----------
    Kraus et al., "Masked Autoencoders for Microscopy are Scalable Learners of Cellular Biology", section 5.1.
    """
    if method not in AGGREGATIONS:
        raise CamaeError(f"unknown aggregation '{method}'; choose one of {', '.join(AGGREGATIONS)}")
    z = embeddings(z, "z")
    xp = namespace(z)
    by_N = labels(by, z.shape[0], "by")
    if control is not None and origin is None:
        origin = control_mean(z, control)
    if origin is not None:
        z = z - origin_of(origin, z)
    if method == "spherical_mean":
        z = unit_rows(z)
    kept = set(perturbation_names(by_N, min_replicates).tolist())
    names, members = groups(by_N)
    members = [index for name, index in zip(names.tolist(), members, strict=True) if name in kept]
    if method == "median":
        return xp.stack([xp.median(rows(z, index), axis=0) for index in members])
    mean = group_means(z, members)
    return unit_rows(mean) if method == "spherical_mean" else mean


def perturbation_names(by: Labels, min_replicates: int = 1) -> npt.NDArray[np.str_]:
    """Names of the perturbations that the rows of `aggregate(..., by=by)` stand for.

    Parameters
    ----------
    by : n labels
        Perturbation of each embedding.
    min_replicates : int
        Labels with fewer rows are left out.

    Returns
    -------
    (m,) array of text
        Distinct labels, sorted as text.

    Raises
    ------
    CamaeError
        When there is no label, or none has `min_replicates` rows.
    """
    check_number(min_replicates, "min_replicates", COUNT, whole=True)
    names, counts = np.unique(labels(by, None, "by"), return_counts=True)
    if len(names) == 0:
        raise CamaeError("by is empty, so there are no perturbations to name; give one label for each row")
    if not (counts >= min_replicates).any():
        raise CamaeError(
            f"no perturbation has {min_replicates} replicates (the most is {counts.max()}: "
            f"{listing(names[counts == counts.max()])}); lower min_replicates"
        )
    return names[counts >= min_replicates]


def control_mean(z: Array, control: Mask) -> Array:
    """Mean of the control rows (d,), summed in fp64. Raises CamaeError when no row is a control."""
    chosen = control_rows(control, z.shape[0])
    return rows(z, chosen).mean(axis=0, dtype=np.float64).astype(z.dtype)


def group_means(z: Array, members: list[np.ndarray]) -> Array:
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
