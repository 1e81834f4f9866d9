"""Recall pooled over random seeds, and the paired difference of two kinds of embedding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from camae.maps.arrays import Array, Labels, takes_tensors
from camae.maps.bootstrap import bootstrap_means
from camae.maps.pairs import Pairs, match_pairs
from camae.maps.recall import Tails, found_pairs


@takes_tensors
def recall_difference(
    trained: Sequence[Array],
    baseline: Sequence[Array],
    names: Labels,
    pairs: Pairs,
    tails: Tails = (0.05, 0.95),
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Difference in recall of two kinds of embedding on the same perturbations, with a paired standard error.

    Parameters
    ----------
    trained, baseline : sequences of (n, d) arrays
        Maps, one for each random seed, all with rows in the order of `names`. Their lengths and d may differ.
    names : n labels
        The perturbations, distinct.
    pairs : sequence of 2-tuples of names, (p, 2) array or DataFrame
        Known related pairs.
    tails : (left, right)
        As in `recall`.
    bootstrap : int
        Resamples for the standard errors.
    seed : int
        Of the resampling.

    Returns
    -------
    dict
        "trained", "baseline" and "difference" (trained - baseline), each with value and se.

    Raises
    ------
    CamaeError
        As `recall`, or when the pairs are too few to resample.

    Notes
    -----
    The score of a pair is the share of seeds that find it. Perturbations (not pairs, not seeds) are resampled with
    replacement, the same draw for both kinds, so that what makes a pair hard for both cancels in the difference.

    References
    ----------
    Owen 2007, "The pigeonhole bootstrap".
    """
    index = match_pairs(names, pairs).index
    score = np.stack(
        [np.mean([found_pairs(v, index, [tails])[0] for v in seeds], axis=0) for seeds in (trained, baseline)]
    )
    score = np.concatenate([score, score[:1] - score[1:]])
    spread = bootstrap_means(index, score, bootstrap, seed).std(axis=1, ddof=1)
    return {
        kind: {"value": float(value), "se": float(se)}
        for kind, value, se in zip(
            ("trained", "baseline", "difference"), score.mean(axis=1), spread, strict=True
        )
    }


@takes_tensors
def pooled_recall(
    seeds: Sequence[Array],
    names: Labels,
    pairs: Pairs,
    tails: Tails = (0.05, 0.95),
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """Recall averaged over maps of the same perturbations, one for each random seed.

    Parameters
    ----------
    seeds : sequence of (n, d) arrays
        Maps with rows in the order of `names`.
    names, pairs, tails, bootstrap, seed
        As in `recall_difference`.

    Returns
    -------
    dict
        value, and se by bootstrap over perturbations.

    Raises
    ------
    CamaeError
        As `recall_difference`.
    """
    return recall_difference(seeds, seeds, names, pairs, tails, bootstrap, seed)["trained"]
