"""Do the replicates of a perturbation agree, and does it do anything? Without a loop over pairs of replicates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from camae.errors import CamaeError
from camae.maps.aggregation import group_means
from camae.maps.arrays import embeddings, groups, labels, listing, mask, namespace, rows, to_numpy, unit_rows


def consistency(x: Any, by: Any, null: Sequence[str] | None = None) -> pd.DataFrame:
    """Mean cosine of a perturbation's pairs of replicates, and p against perturbations that should do nothing.

    x: (n, d); by: n labels. null: names of perturbations without effect (unexpressed genes); p is the share of
    them with a larger value: 1 - rank / n, as the EFAAR benchmark has it; NaN without null.
    Returns one row per label, sorted: perturbation, n_replicates, consistency, p_value. A perturbation with one
    replicate has NaN. From the closed form (|sum of unit rows|^2 - m) / (m (m - 1)), rows of length zero not
    counted as agreeing with themselves. Raises CamaeError when null names an unknown label, or no label has two rows.
    """
    unit = unit_rows(embeddings(x))
    xp = namespace(unit)
    names, members = groups(labels(by, unit.shape[0], "by"))
    count = np.array([len(index) for index in members])
    if count.max() < 2:
        raise CamaeError("No perturbation has two replicates; consistency needs pairs of replicates.")
    total = to_numpy(group_means(unit, members)).astype(np.float64) * count[:, None]
    norm_N = to_numpy(xp.einsum("ij,ij->i", unit, unit)).astype(np.float64)
    own = np.array([norm_N[index].sum() for index in members])
    pairs = np.where(count > 1, count * (count - 1), 1)
    value = np.where(count > 1, ((total**2).sum(axis=1) - own) / pairs, np.nan)
    out = pd.DataFrame({"perturbation": names, "n_replicates": count, "consistency": value})
    return out.assign(p_value=_p_against(names, value, null))


def magnitude(
    x: Any, by: Any, control: Any, null: Sequence[str] | None = None, max_controls: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| of each perturbation's rows X to the controls Y.

    control: n booleans; at most max_controls of them are drawn. null as in `consistency`.
    Returns one row per label of the other rows: perturbation, n_replicates, magnitude, p_value.
    """
    x = embeddings(x)
    by_N, control_N = labels(by, x.shape[0], "by"), mask(control, x.shape[0], "control")
    chosen = np.flatnonzero(control_N)
    if len(chosen) == 0:
        raise CamaeError("No row is marked as a negative control; check the control= mask.")
    if len(chosen) > max_controls:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, max_controls, replace=False))
    others = np.flatnonzero(~control_N)
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


def _distances(a: Any, b: Any) -> Any:
    xp = namespace(a)
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * (a @ b.T)
    return xp.sqrt(xp.maximum(squared, 0))


def _p_against(names: np.ndarray, value: np.ndarray, null: Sequence[str] | None) -> np.ndarray:
    if null is None:
        return np.full(len(names), np.nan)
    wanted = np.unique(np.asarray(list(null)).astype(str))
    unknown = wanted[~np.isin(wanted, names)]
    if len(unknown):
        raise CamaeError(f"null names {listing(unknown)}, which no row has; give names that occur in by=.")
    reference = np.sort(value[np.isin(names, wanted) & np.isfinite(value)])
    if len(reference) == 0:
        raise CamaeError(
            "None of the null perturbations has two replicates; there is nothing to compare with."
        )
    p = 1 - np.searchsorted(reference, value, side="left") / len(reference)
    return np.where(np.isfinite(value), p, np.nan)
