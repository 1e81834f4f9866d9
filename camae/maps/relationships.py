"""Relationships between perturbations: cosines of their vectors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pandas as pd

from camae.errors import CamaeError
from camae.maps.arrays import Array, Labels, namespace, takes_tensors, to_numpy, unit_rows
from camae.maps.inputs import COUNT, check_number, embeddings, named_rows, origin_of
from camae.typed_settings import Limits

# How strong a relationship is, by the side of the map asked for.
STRENGTH: dict[str, Callable[[Array], Array]] = {
    "similar": lambda cosine: cosine,
    "opposite": lambda cosine: -cosine,
    "both": abs,
}


@takes_tensors
def relate(v: Array, origin: npt.ArrayLike | None = None) -> Array:
    """Map of relationships: the cosine of every two perturbations.

    A cosine near 1 means that two perturbations change the cells in the same way, near -1 in opposite ways.

    Parameters
    ----------
    v : (n, d) array
        One row for each perturbation, origin at the negative controls; NumPy, CuPy or torch.
    origin : (d,) array, optional
        Subtracted first: the mean of the negative controls when v is not yet centered there.

    Returns
    -------
    (n, n) array
        Cosines in [-1, 1], in v's namespace and dtype. A row of length zero has the cosine 0 with all.

    Raises
    ------
    CamaeError
        When v is not a finite table, or the origin not one of its rows' length.
    """
    v = embeddings(v, "v")
    xp = namespace(v)
    unit = unit_rows(v if origin is None else v - origin_of(origin, v))
    return xp.clip(unit @ unit.T, -1, 1)


@takes_tensors
def strongest(
    v: Array, names: Labels, count: int = 50, side: str = "both", block: int = 1024
) -> pd.DataFrame:
    """Strongest relationships of the map.

    Parameters
    ----------
    v : (n, d) array
        One row for each perturbation, origin at the negative controls; NumPy, CuPy or torch.
    names : n labels
        Perturbation of each row.
    count : int
        How many relationships are returned.
    side : {"both", "similar", "opposite"}
        The largest absolute cosines, the largest cosines, or the smallest.
    block : int
        Rows at a time; memory is block x n cosines.

    Returns
    -------
    DataFrame
        Columns a, b, cosine; strongest first; a stands before b in row order.

    Raises
    ------
    CamaeError
        For an unknown side, a count or block that cannot be, or when names and rows differ in number.
    """
    if side not in STRENGTH:
        raise CamaeError(f"unknown side '{side}'; choose one of {', '.join(STRENGTH)}")
    check_number(count, "count", Limits(low=0), whole=True)
    check_number(block, "block", COUNT, whole=True)
    strength = STRENGTH[side]
    v, name_N = named_rows(v, names)
    unit = unit_rows(v)
    xp, n = namespace(unit), unit.shape[0]
    best = np.empty((0, 3))
    for start in range(0, n, block):
        cosines = unit[start : start + block] @ unit[start:].T
        i, j = xp.triu_indices(cosines.shape[0], 1, cosines.shape[1])
        values = cosines[i, j]
        kept = xp.argsort(-strength(values))[:count]
        found = [to_numpy(part[kept]).astype(np.float64) for part in (i, j, values)]
        best = np.concatenate([best, np.stack([found[0] + start, found[1] + start, found[2]], axis=1)])
        best = best[np.argsort(-strength(best[:, 2]), kind="stable")[:count]]
    left, right = best[:, 0].astype(int), best[:, 1].astype(int)
    return pd.DataFrame({"a": name_N[left], "b": name_N[right], "cosine": np.clip(best[:, 2], -1, 1)})
