"""What an embedding knows: CellProfiler features by regression, perturbations and mechanisms by classification."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from camae.errors import CamaeError
from camae.maps.arrays import embeddings, labels, mask, namespace, rows, to_numpy, unit_rows

# The paper's Figure 6; anything else is filed under the measurement's own name.
CATEGORIES = ("AreaShape", "Texture", "RadialDistribution", "Intensity", "Neighbors")


def feature_regression(
    x: Any, y: Any, x_test: Any, y_test: Any, names: Sequence[str], ridge: float = 1e-6
) -> pd.DataFrame:
    """Linear regression from embeddings to features, judged on an independent set (paper, section 5.5, Figure 6).

    x: (n, d), y: (n, f) of the fitting set, x_test and y_test of the other; names: f feature names. ridge is
    relative to the mean variance of x and only keeps the solution defined when n <= d.
    Returns one row per feature: feature, category, r2 = 1 - SS_res / SS_tot about the test mean (NaN for a feature
    that is constant in the test set). Raises CamaeError for shapes that do not match.
    """
    x, x_test = embeddings(x, "x"), embeddings(x_test, "x_test")
    y, y_test = embeddings(y, "y"), embeddings(y_test, "y_test")
    xp = namespace(x)
    if len(names) != y.shape[1] or y.shape[1] != y_test.shape[1] or x.shape[1] != x_test.shape[1]:
        raise CamaeError(
            f"Features do not match: {len(names)} names, {y.shape[1]} and {y_test.shape[1]} columns of y, "
            f"{x.shape[1]} and {x_test.shape[1]} of x."
        )
    if x.shape[0] != y.shape[0] or x_test.shape[0] != y_test.shape[0]:
        raise CamaeError("x and y must have the same rows in both sets.")
    weight, offset = _ridge(x, y.astype(np.float64), ridge)
    predicted = x_test.astype(np.float64) @ weight + offset
    truth = y_test.astype(np.float64)
    residual = to_numpy(((truth - predicted) ** 2).sum(axis=0))
    mean = truth.mean(axis=0)
    total = to_numpy(((truth - mean) ** 2).sum(axis=0))
    constant = total <= 1e-24 * truth.shape[0] * to_numpy(xp.maximum(mean**2, 1e-276))
    r2 = np.where(constant, np.nan, 1 - residual / np.where(constant, 1, total))
    return pd.DataFrame({"feature": list(names), "category": [feature_category(n) for n in names], "r2": r2})


def feature_category(name: str) -> str:
    """The CellProfiler category of a feature name such as Cells_AreaShape_Area or Nuclei_Texture_.."""
    parts = re.split(r"[_.]", name)
    for part in parts:
        if part in CATEGORIES:
            return part
    return parts[1] if len(parts) > 1 else name


def _ridge(x: Any, y: Any, ridge: float) -> tuple[Any, Any]:
    """weight (d, f) and offset (f,) of least squares with an L2 penalty, in fp64."""
    xp = namespace(x)
    chosen = x.astype(np.float64)
    mean_x, mean_y = chosen.mean(axis=0), y.mean(axis=0)
    chosen = chosen - mean_x
    gram = chosen.T @ chosen
    penalty = ridge * float(gram.trace()) / gram.shape[0]
    if penalty == 0:
        raise CamaeError("All rows of x are the same; there is nothing to regress on.")
    weight = xp.linalg.solve(gram + penalty * xp.eye(gram.shape[0]), chosen.T @ (y - mean_y))
    return weight, mean_y - mean_x @ weight


def linear_probe(x: Any, label: Any, split: Any, ridge: float = 1e-2) -> dict[str, float]:
    """Separability of perturbations: a ridge classifier trained without one group of rows, tested on it, for each.

    x: (n, d); label: n perturbations; split: n groups (plates, experiments), each held out once. Labels that occur
    in one group only cannot be learned and are left out.
    Returns accuracy, balanced_accuracy (mean over labels), chance (1 / labels), n_labels, n_rows. Raises CamaeError
    when fewer than two labels occur in two groups.
    """
    x = embeddings(x)
    label_N, split_N = labels(label, x.shape[0], "label"), labels(split, x.shape[0], "split")
    spread = pd.Series(split_N).groupby(label_N).nunique()
    kept = np.flatnonzero(np.isin(label_N, spread.index[spread > 1].to_numpy().astype(str)))
    names, code = np.unique(label_N[kept], return_inverse=True)
    if len(names) < 2:
        raise CamaeError(
            "Fewer than two labels occur in two groups of split; the probe has nothing to generalize to."
        )
    hit = np.zeros(len(kept), dtype=bool)
    for group in np.unique(split_N[kept]):
        held = split_N[kept] == group
        target = namespace(x).asarray(np.eye(len(names))[code[~held]])
        weight, offset = _ridge(rows(x, kept[~held]), target, ridge)
        scores = rows(x, kept[held]).astype(np.float64) @ weight + offset
        hit[held] = to_numpy(scores.argmax(axis=1)) == code[held]
    per_label = pd.Series(hit).groupby(code).mean()
    return {
        "accuracy": float(hit.mean()),
        "balanced_accuracy": float(per_label.mean()),
        "chance": 1 / len(names),
        "n_labels": float(len(names)),
        "n_rows": float(len(kept)),
    }


def nearest_neighbor(v: Any, label: Any, exclude: Any = None, query: Any = None) -> dict[str, float]:
    """Share of rows whose nearest row by cosine has the same label (mechanism of action, 1-NN).

    v: (n, d), one row per treatment; exclude: n groups, rows of the same group are not neighbors (the compound:
    "not the same compound"); a row is never its own neighbor. query: n booleans, the rows that ask.
    Returns accuracy and n_rows (rows left without any neighbor do not count).
    """
    unit = unit_rows(embeddings(v, "v"))
    xp, n = namespace(unit), unit.shape[0]
    label_N = labels(label, n, "label")
    group_N = np.arange(n) if exclude is None else pd.factorize(labels(exclude, n, "exclude"))[0]
    asks = np.ones(n, dtype=bool) if query is None else mask(query, n, "query")
    device = xp.asarray(group_N)
    hits = []
    for start in range(0, n, 1024):
        cosines = unit[start : start + 1024] @ unit.T
        cosines[device[start : start + 1024, None] == device[None]] = -xp.inf
        nearest = to_numpy(cosines.argmax(axis=1))
        there = to_numpy(cosines.max(axis=1)) > -np.inf
        own = np.arange(start, start + len(nearest))
        hits.append((label_N[nearest] == label_N[own])[there & asks[own]])
    hit = np.concatenate(hits)
    if len(hit) == 0:
        raise CamaeError("No row has a neighbor outside its own group; check exclude=.")
    return {"accuracy": float(hit.mean()), "n_rows": float(len(hit))}
