"""Probes: what an embedding knows, by regression (CellProfiler features) and classification (labels)."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from camae.errors import CamaeError
from camae.maps.arrays import Array, Labels, Mask, namespace, rows, takes_tensors, to_numpy, unit_rows
from camae.maps.inputs import check_number, embeddings, labels, mask
from camae.maps.spectral import mean_magnitude, safe_scale
from camae.typed_settings import Limits

# The paper's Figure 6; anything else is filed under the measurement's own name.
CATEGORIES = ("AreaShape", "Texture", "RadialDistribution", "Intensity", "Neighbors")
_PENALTY = Limits(above=0)  # without any, features more than rows leave the weights undefined


@takes_tensors
def feature_regression(
    x: Array, y: Array, x_test: Array, y_test: Array, names: Sequence[str], ridge: float = 1e-6
) -> pd.DataFrame:
    """Feature regression: how well CellProfiler features are predicted linearly from embeddings.

    Parameters
    ----------
    x, y : (n, d) and (n, f) arrays
        Embeddings and features of the set to fit on; NumPy, CuPy or torch, floating point.
    x_test, y_test : (m, d) and (m, f) arrays
        The same of an independent set to test on.
    names : f str
        Feature names, such as Cells_AreaShape_Area.
    ridge : float
        L2 penalty relative to the mean variance of x; it only keeps the solution defined when n <= d.

    Returns
    -------
    DataFrame
        One row for each feature: feature, category (`feature_category`), r2. r2 is NaN for a feature that is
        constant in the test set. The usual summary is the median r2 of each category.

    Raises
    ------
    CamaeError
        For shapes that do not match, a penalty that is not above 0, or rows of x that are all the same.

    Notes
    -----
    R^2 = 1 - sum (y - prediction)^2 / sum (y - mean y)^2 over the test set, with the test set's mean.

    References
    ----------
    Kraus et al. (CVPR 2024), section 5.5, Figure 6.
    """
    check_number(ridge, "ridge", _PENALTY)
    x, x_test = embeddings(x, "x"), embeddings(x_test, "x_test")
    y, y_test = embeddings(y, "y"), embeddings(y_test, "y_test")
    xp, names = namespace(x), labels(names, None, "names").tolist()
    if len(names) != y.shape[1] or y.shape[1] != y_test.shape[1] or x.shape[1] != x_test.shape[1]:
        raise CamaeError(
            f"features do not match: {len(names)} names, {y.shape[1]} and {y_test.shape[1]} columns of y, "
            f"{x.shape[1]} and {x_test.shape[1]} of x"
        )
    if x.shape[0] != y.shape[0] or x_test.shape[0] != y_test.shape[0]:
        raise CamaeError("x and y must have the same rows in both sets")
    weight, offset = _ridge(x.astype(np.float64), y.astype(np.float64), ridge)
    predicted = x_test.astype(np.float64) @ weight + offset
    truth = y_test.astype(np.float64)
    residual = to_numpy(((truth - predicted) ** 2).sum(axis=0))
    mean = truth.mean(axis=0)
    total = to_numpy(((truth - mean) ** 2).sum(axis=0))
    constant = total <= 1e-24 * truth.shape[0] * to_numpy(xp.maximum(mean**2, 1e-276))
    r2 = np.where(constant, np.nan, 1 - residual / np.where(constant, 1, total))
    return pd.DataFrame({"feature": list(names), "category": [feature_category(n) for n in names], "r2": r2})


def feature_category(name: str) -> str:
    """CellProfiler category of a feature name such as Cells_AreaShape_Area or Nuclei_Texture_Entropy."""
    parts = re.split(r"[_.]", name)
    for part in parts:
        if part in CATEGORIES:
            return part
    return parts[1] if len(parts) > 1 else name


@takes_tensors
def linear_probe(
    x: Array,
    label: Labels,
    split: Labels | None,
    ridge: float = 1e-2,
    *,
    penalty: float | None = None,
    standardize: bool = False,
    unseen: str = "drop",
) -> dict[str, float]:
    """Linear probe: accuracy of a ridge classifier of labels, tested on groups of rows that it was not fitted on.

    Parameters
    ----------
    x : (n, d) array
        Embeddings, NumPy, CuPy or torch, floating point.
    label : n labels
        The classes, for example perturbations.
    split : n labels or None
        Groups (plates, experiments), each held out once. None holds out the even rows, then the odd ones.
    ridge, penalty : float
        L2 penalty relative to the mean over features of their sum of squares in the rows fitted on; or itself.
    standardize : bool
        Center each feature and scale it to unit variance, as learned from the rows fitted on.
    unseen : {"drop", "count"}
        Labels that occur in one group only cannot be learned: leave them out, or count them as mistakes.

    Returns
    -------
    dict
        accuracy, balanced_accuracy (mean over labels), chance (1 / labels), majority (share of the most frequent
        label), n_labels, n_rows.

    Raises
    ------
    CamaeError
        For equal rows, a penalty that is not above 0, or, with unseen="drop", where fewer than two labels occur in
        two groups.

    Notes
    -----
    One regression for each label on its 0/1 indicator, the largest wins; weights minimize |Y - X W|^2 + penalty |W|^2.
    """
    if unseen not in ("drop", "count"):
        raise CamaeError(f"unknown unseen '{unseen}'; choose 'drop' or 'count'")
    check_number(ridge, "ridge", _PENALTY)
    if penalty is not None:
        check_number(penalty, "penalty", _PENALTY)
    x = embeddings(x)
    n = x.shape[0]
    label_N = labels(label, n, "label")
    split_N = (np.arange(n) % 2).astype(str) if split is None else labels(split, n, "split")
    kept = np.arange(n) if unseen == "count" else _in_two_groups(label_N, split_N)
    names, code = np.unique(label_N[kept], return_inverse=True)
    hit = np.zeros(len(kept), dtype=bool)
    for group in np.unique(split_N[kept]):
        held = split_N[kept] == group
        if not held.all():  # else there is nothing to fit on, and all count as mistakes
            fitted, tested = (rows(x, kept[part]).astype(np.float64) for part in (~held, held))
            predicted = _classified(fitted, tested, code[~held], len(names), ridge, penalty, standardize)
            hit[held] = predicted == code[held]
    return _accuracies(hit, code)


def _accuracies(hit: npt.NDArray[np.bool_], code: npt.NDArray[np.intp]) -> dict[str, float]:
    """Scores of a probe. hit: whether each row was named right; code: its label number."""
    count = np.bincount(code)
    return {
        "accuracy": float(hit.mean()),
        "balanced_accuracy": float(pd.Series(hit).groupby(code).mean().mean()),
        "chance": 1 / len(count),
        "majority": float(count.max() / len(code)),
        "n_labels": float(len(count)),
        "n_rows": float(len(code)),
    }


def _classified(
    fitted: Array,
    tested: Array,
    code: npt.NDArray[np.intp],
    n_labels: int,
    ridge: float,
    penalty: float | None,
    standardize: bool,
) -> npt.NDArray[np.intp]:
    """Label number of every tested row, by ridge regression on the rows fitted on and their label numbers `code`."""
    if standardize:
        mean = fitted.mean(axis=0)
        scale = safe_scale(fitted.std(axis=0), mean_magnitude(fitted))
        fitted, tested = (fitted - mean) / scale, (tested - mean) / scale
    target = namespace(fitted).asarray(np.eye(n_labels)[code])
    weight, offset = _ridge(fitted, target, ridge, penalty)
    found: npt.NDArray[np.intp] = to_numpy((tested @ weight + offset).argmax(axis=1))
    return found


def _in_two_groups(label_N: np.ndarray, split_N: np.ndarray) -> npt.NDArray[np.intp]:
    """Rows whose label occurs in two groups of the split. Raises CamaeError for fewer than two such labels."""
    groups_of = pd.Series(split_N).groupby(label_N).nunique()
    repeated = groups_of.index[groups_of > 1].to_numpy().astype(str)
    if len(repeated) < 2:
        raise CamaeError(
            "fewer than two labels occur in two groups of split; the probe has nothing to generalize to"
        )
    return np.flatnonzero(np.isin(label_N, repeated))


def _ridge(x: Array, y: Array, ridge: float, penalty: float | None = None) -> tuple[Array, Array]:
    """Ridge regression of y (n, f) on x (n, d), both fp64: weight (d, f) and offset (f,).

    The penalty is `penalty`, or else `ridge` relative to the mean over features of their sum of squares. Of the two
    equal forms, (X'X + p I)^(-1) X'Y and X'(XX' + p I)^(-1) Y, the one with the smaller system is solved.
    """
    xp = namespace(x)
    n, d = x.shape
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    x, y = x - mean_x, y - mean_y
    p = ridge * float((x**2).sum()) / d if penalty is None else penalty
    if p == 0:
        raise CamaeError("all rows of x are the same; there is nothing to regress on")
    if n < d:
        weight = x.T @ xp.linalg.solve(x @ x.T + p * xp.eye(n), y)
    else:
        weight = xp.linalg.solve(x.T @ x + p * xp.eye(d), x.T @ y)
    return weight, mean_y - mean_x @ weight


@takes_tensors
def nearest_neighbor(
    v: Array,
    label: Labels,
    exclude: Labels | None = None,
    query: Mask | None = None,
    batch: Labels | None = None,
) -> dict[str, float]:
    """Nearest-neighbor accuracy: the share of rows whose nearest row by cosine has the same label.

    Used for mechanisms of action: a treatment is assigned the mechanism of the treatment it looks most like.

    Parameters
    ----------
    v : (n, d) array
        One row for each treatment, NumPy, CuPy or torch, floating point.
    label : n labels
        Mechanism of action of each row.
    exclude : n labels, optional
        Rows of the same group are not neighbors: the compound gives "not same compound" accuracy. A row is never its
        own neighbor.
    query : n booleans, optional
        Rows that are scored; all by default.
    batch : n labels, optional
        Rows of the same batch are not neighbors either: "not same compound, not same batch" accuracy.

    Returns
    -------
    dict
        accuracy, and n_rows, the rows scored (those without any neighbor do not count).

    Raises
    ------
    CamaeError
        When no row has a neighbor.

    References
    ----------
    Ljosa et al. 2013, "Comparison of methods for image-based profiling of cellular morphological responses to
    small-molecule treatment" (BBBC021); Ando et al. 2017, "Improving phenotypic measurements in high-content imaging
    screens" (not same batch).
    """
    unit = unit_rows(embeddings(v, "v"))
    xp, n = namespace(unit), unit.shape[0]
    label_N = labels(label, n, "label")
    group_N = np.arange(n) if exclude is None else pd.factorize(labels(exclude, n, "exclude"))[0]
    asks = np.ones(n, dtype=bool) if query is None else mask(query, n, "query")
    apart = [group_N] if batch is None else [group_N, pd.factorize(labels(batch, n, "batch"))[0]]
    barred = [xp.asarray(code_N) for code_N in apart]
    hits = []
    for start in range(0, n, 1024):
        cosines = unit[start : start + 1024] @ unit.T
        for code_N in barred:
            cosines[code_N[start : start + 1024, None] == code_N[None]] = -xp.inf
        nearest = to_numpy(cosines.argmax(axis=1))
        there = to_numpy(cosines.max(axis=1)) > -np.inf
        own = np.arange(start, start + len(nearest))
        hits.append((label_N[nearest] == label_N[own])[there & asks[own]])
    hit = np.concatenate(hits)
    if len(hit) == 0:
        raise CamaeError("no row has a neighbor outside its own group; check exclude= and batch=")
    return {"accuracy": float(hit.mean()), "n_rows": float(len(hit))}
