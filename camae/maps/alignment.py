"""Batch correction by name: the rows of the paper's Table 2, and the variants the field uses beside them.

All of them are fitted in fp64 and applied in the precision of the table.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from camae.errors import CamaeError
from camae.maps.affine import Alignment
from camae.maps.arrays import embeddings, labels, mask
from camae.maps.standardizing import Center, RobustizeMAD, Standardize
from camae.maps.whitening import PCA, TVN, PCAStandardize, Spherize, TVNAndo

ALIGNERS: dict[str, type[Alignment]] = {
    aligner.method: aligner
    for aligner in (Center, Standardize, PCA, PCAStandardize, TVN, TVNAndo, Spherize, RobustizeMAD)
}
METHODS = ("none", *ALIGNERS)


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
        aligner = ALIGNERS[key](**options)
    except TypeError as error:
        raise CamaeError(f"Alignment '{method}' has no such option: {error}.") from None
    return aligner.fit_transform(x, batch=batch, control=control)


def split_controls(control: Any, batch: Any = None, held_out: float = 0.5, seed: int = 0) -> tuple[Any, Any]:
    """Two disjoint masks (fit, held out) of the controls, split at random within each batch.

    An alignment fitted on the controls that then serve as negatives inflates retrieval: fit on the first mask,
    retrieve against the second. Raises CamaeError when a batch has fewer than two controls.
    """
    raw = np.asarray(control)
    control_N = mask(raw, len(raw), "control")
    batch_N = np.full(len(raw), "") if batch is None else labels(batch, len(raw), "batch")
    rng = np.random.default_rng(seed)
    held = np.zeros(len(raw), dtype=bool)
    for name in np.unique(batch_N):
        index = np.flatnonzero(control_N & (batch_N == name))
        if len(index) < 2:
            raise CamaeError(
                f"Batch '{name}' has {len(index)} controls; at least 2 are needed to hold some out."
            )
        count = min(max(round(held_out * len(index)), 1), len(index) - 1)
        held[rng.permutation(index)[:count]] = True
    return control_N & ~held, held
