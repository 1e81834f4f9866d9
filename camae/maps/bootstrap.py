"""Bootstrap over perturbations: the sampling spread of a mean over pairs of perturbations."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from camae.errors import CamaeError

_DRAWS = 100  # tries for each resample wanted, as those without any pair are drawn again


def bootstrap_means(
    index: np.ndarray, value: np.ndarray, resamples: int, seed: int
) -> npt.NDArray[np.float64]:
    """Means of value (k, pairs) under resampling of perturbations with replacement: (k, resamples).

    index: (pairs, 2) rows of the map. A perturbation drawn w times gives its pairs the weight w_a w_b, so that pairs
    that share a perturbation come and go together; the percentiles of the null distribution stay as they are. The
    spread is cautious: right for effects shared by a perturbation's pairs, up to sqrt(3) too large for independent
    pairs (Owen 2007, "The pigeonhole bootstrap"). Raises CamaeError when the pairs are too few.
    """
    members, local = np.unique(index, return_inverse=True)
    local = local.reshape(index.shape)
    rng = np.random.default_rng(seed)
    out: list[np.ndarray] = []
    for _ in range(_DRAWS * resamples):
        weight = np.bincount(rng.integers(0, len(members), len(members)), minlength=len(members))
        pair_weight = (weight[local[:, 0]] * weight[local[:, 1]]).astype(float)
        if pair_weight.sum() > 0:
            out.append(value @ pair_weight / pair_weight.sum())
        if len(out) == resamples:
            return np.stack(out, axis=1)
    raise CamaeError(f"the {len(index)} pairs are too few to resample perturbations; use bootstrap=0")
