"""Cosine relationships between perturbations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from camae.errors import CamaeError
from camae.maps.arrays import embeddings, labels, namespace, to_numpy, unit_rows


def relate(v: Any, origin: Any = None) -> Any:
    """The cosine map (n, n) of v (n, d), in v's namespace and dtype; clipped to [-1, 1].

    origin: (d,), subtracted first: the mean of the negative controls when the table is not yet centered there.
    """
    v = embeddings(v, "v")
    xp = namespace(v)
    unit = unit_rows(v if origin is None else v - xp.asarray(origin, dtype=v.dtype))
    return xp.clip(unit @ unit.T, -1, 1)


def strongest(v: Any, names: Any, count: int = 50, side: str = "both", block: int = 1024) -> pd.DataFrame:
    """The `count` strongest relationships of the map, strongest first: columns a, b, cosine (a < b in row order).

    side: "similar" (largest cosines), "opposite" (smallest) or "both" (largest absolute value).
    Memory is one block of block x n cosines. Raises CamaeError when names and rows differ in number.
    """
    keys = {"similar": lambda c: c, "opposite": lambda c: -c, "both": abs}
    if side not in keys:
        raise CamaeError(f"Unknown side '{side}'; choose one of {', '.join(keys)}.")
    unit = unit_rows(embeddings(v, "v"))
    xp, n = namespace(unit), unit.shape[0]
    name_N = labels(names, n, "names")
    best = np.empty((0, 3))
    for start in range(0, n, block):
        cosines = unit[start : start + block] @ unit[start:].T
        i, j = xp.triu_indices(cosines.shape[0], 1, cosines.shape[1])
        values = cosines[i, j]
        kept = xp.argsort(-keys[side](values))[:count]
        found = [to_numpy(part[kept]).astype(np.float64) for part in (i, j, values)]
        best = np.concatenate([best, np.stack([found[0] + start, found[1] + start, found[2]], axis=1)])
        best = best[np.argsort(-keys[side](best[:, 2]), kind="stable")[:count]]
    left, right = best[:, 0].astype(int), best[:, 1].astype(int)
    return pd.DataFrame({"a": name_N[left], "b": name_N[right], "cosine": np.clip(best[:, 2], -1, 1)})
