"""Replicate consistency and perturbation magnitude: do replicates agree, and does a perturbation do anything?

Sources: Celik et al. 2024, "Building, benchmarking, and exploring perturbative maps of transcriptional and
morphological data" (EFAAR), perturbation signal consistency and magnitude; Szekely and Rizzo 2013, "Energy statistics".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from camae.errors import CamaeError
from camae.maps.aggregation import group_means
from camae.maps.arrays import Array, Labels, Mask, groups, namespace, rows, takes_tensors, to_numpy, unit_rows
from camae.maps.inputs import (
    COUNT,
    check_metadata,
    check_number,
    check_seed,
    control_rows,
    embeddings,
    labels,
    listing,
)
from camae.maps.replicates import ReplicateUnit, independent_rows

_BY = "camae_by"  # column of the labels beside the metadata


@takes_tensors
def consistency(
    x: Array,
    by: Labels,
    null: Sequence[str] | None = None,
    meta: pd.DataFrame | None = None,
    unit: ReplicateUnit = None,
) -> pd.DataFrame:
    """Replicate consistency: mean cosine of all pairs of replicates of a perturbation.

    A perturbation that acts on the cells gives replicates that look alike.

    Parameters
    ----------
    x : (n, d) array
        Aligned embeddings with the origin at the negative controls, NumPy, CuPy or torch.
    by : n labels
        Perturbation of each row.
    null : sequence of str, optional
        Names of perturbations that should do nothing (genes the cells do not express). Their consistencies are the
        null distribution: the p-value is the share of them that is at least as large.
    meta : DataFrame, optional
        n rows with Metadata_Plate and Metadata_Well. Several rows of one well and perturbation are then refused, as
        sites of one well are no replicates.
    unit : {"well", "site"}, optional
        "well" averages such rows, "site" counts them as replicates.

    Returns
    -------
    DataFrame
        One row for each label, sorted: perturbation, n_replicates, consistency, p_value. Consistency is NaN with one
        replicate, p_value is NaN without `null`.

    Raises
    ------
    CamaeError
        When `null` names an unknown label, no label has two rows, or (with `meta`) they are of one well.

    Notes
    -----
    With u_i the m rows scaled to unit length, the mean over pairs is (|sum_i u_i|^2 - m) / (m (m - 1)), which needs
    no loop over pairs. Rows of length zero do not count as agreeing with themselves. p = 1 - rank / (size of null).
    """
    x, by_N = _replicates(x, by, meta, unit)
    directions = unit_rows(x)
    xp = namespace(directions)
    names, members = groups(by_N)
    count = np.array([len(index) for index in members])
    if count.max() < 2:
        raise CamaeError("no perturbation has two replicates; consistency needs pairs of replicates")
    total = to_numpy(group_means(directions, members)).astype(np.float64) * count[:, None]
    norm_N = to_numpy(xp.einsum("ij,ij->i", directions, directions)).astype(np.float64)
    own = np.array([norm_N[index].sum() for index in members])
    pairs = np.where(count > 1, count * (count - 1), 1)
    value = np.where(count > 1, ((total**2).sum(axis=1) - own) / pairs, np.nan)
    out = pd.DataFrame({"perturbation": names, "n_replicates": count, "consistency": value})
    return out.assign(p_value=_p_against(names, value, null))


@takes_tensors
def magnitude(
    x: Array,
    by: Labels,
    control: Mask,
    null: Sequence[str] | None = None,
    max_controls: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Perturbation magnitude: energy distance between a perturbation's replicates and the negative controls.

    The energy distance between two distributions is zero when they are the same and grows with their separation, so
    it says how strongly a perturbation changes the cells, in the units of x.

    Parameters
    ----------
    x : (n, d) array
        Aligned embeddings, NumPy, CuPy or torch.
    by : n labels
        Perturbation of each row.
    control : n booleans
        True for negative controls.
    null : sequence of str, optional
        Names of perturbations that should do nothing, for the p-value; see `consistency`.
    max_controls : int
        More controls than these are sampled down to them.
    seed : int
        Of that sample.

    Returns
    -------
    DataFrame
        One row for each label of the other rows, sorted: perturbation, n_replicates, magnitude, p_value.

    Raises
    ------
    CamaeError
        When no row is a control, or every row is, or `null` names an unknown label.

    Notes
    -----
    With X, X' independent draws of the perturbation's rows and Y, Y' of the controls, the energy distance is
    2 E|X - Y| - E|X - X'| - E|Y - Y'|, with Euclidean distances.
    """
    check_number(max_controls, "max_controls", COUNT, whole=True)
    check_seed(seed)
    x = embeddings(x)
    by_N, chosen = labels(by, x.shape[0], "by"), control_rows(control, x.shape[0])
    others = np.setdiff1d(np.arange(x.shape[0]), chosen)
    if len(others) == 0:
        raise CamaeError("every row is a negative control; magnitude needs rows of perturbations beside them")
    if len(chosen) > max_controls:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, max_controls, replace=False))
    names, members = groups(by_N[others])
    y = rows(x, chosen).astype(np.float64)
    within = float(_distances(y, y).mean())
    value = []
    for index in members:
        own = rows(x, others[index]).astype(np.float64)
        value.append(2 * float(_distances(own, y).mean()) - float(_distances(own, own).mean()) - within)
    count = [len(index) for index in members]
    out = pd.DataFrame({"perturbation": names, "n_replicates": count, "magnitude": value})
    return out.assign(p_value=_p_against(names, np.array(value), null))


def _replicates(
    x: Array, by: Labels, meta: pd.DataFrame | None, unit: ReplicateUnit
) -> tuple[Array, npt.NDArray[np.str_]]:
    """Rows and labels, one for each well and label where the metadata tells wells."""
    x = embeddings(x)
    n = x.shape[0]
    by_N = labels(by, n, "by")
    if meta is None:
        return x, by_N
    check_metadata(meta, n)
    table = meta.reset_index(drop=True).assign(**{_BY: by_N})
    x, table, _ = independent_rows(x, table, [_BY], unit, np.ones(n, dtype=bool))
    return x, table[_BY].to_numpy(str)


def _distances(a: Array, b: Array) -> Array:
    """Euclidean distances (n, m) of the rows of a (n, d) and b (m, d), fp64."""
    xp = namespace(a)
    center = b.mean(axis=0)  # products of rows far from the origin lose the digits of their differences
    near_a, near_b = a - center, b - center
    squared = (near_a**2).sum(axis=1)[:, None] + (near_b**2).sum(axis=1)[None] - 2 * (near_a @ near_b.T)
    apart: Array = xp.sqrt(xp.maximum(squared, 0))
    if a is b:
        xp.fill_diagonal(apart, 0)  # the square root of its rounding would be seen
    return apart


def _p_against(names: np.ndarray, value: np.ndarray, null: Sequence[str] | None) -> np.ndarray:
    if null is None:
        return np.full(len(names), np.nan)
    wanted = np.unique(labels(list(null), len(null), "null"))
    unknown = wanted[~np.isin(wanted, names)]
    if len(unknown):
        raise CamaeError(f"null names {listing(unknown)}, which no row has; give names that occur in by=")
    reference = np.sort(value[np.isin(names, wanted) & np.isfinite(value)])
    if len(reference) == 0:
        raise CamaeError(
            "none of the null perturbations has two replicates; there is nothing to compare with"
        )
    p = 1 - np.searchsorted(reference, value, side="left") / len(reference)
    return np.where(np.isfinite(value), p, np.nan)
