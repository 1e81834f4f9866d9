"""Recall pooled over random seeds, and the paired difference of two kinds of embedding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from camae.errors import CamaeError
from camae.maps.arrays import Array, Labels, takes_tensors
from camae.maps.inputs import named_rows
from camae.maps.intervals import difference_interval, share_interval, spread
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
    """Difference in recall of two kinds of embedding on the same perturbations, with a paired 95 % interval.

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
    bootstrap, seed : int
        Of versions that resampled; not used, nothing is drawn.

    Returns
    -------
    dict
        "trained", "baseline" and "difference" (trained - baseline), each with value, se, low and high (the ends of the
        95 % interval).

    Raises
    ------
    CamaeError
        As `recall`.

    Notes
    -----
    The score of a pair is the share of seeds that find it. Standard errors are those of `recall`, over groups of
    related perturbations, not over pairs or seeds; both kinds are taken together, so that what makes a group hard for
    both cancels in the difference. Its interval is Newcombe's (method 10), from those of the two.

    References
    ----------
    Aronow et al. 2015, "Cluster-Robust Variance Estimation for Dyadic Data"; Newcombe 1998, "Improved confidence
    intervals for the difference between binomial proportions based on paired data".
    """
    kinds = [_maps(trained, names, "trained"), _maps(baseline, names, "baseline")]
    index = match_pairs(names, pairs).index
    score = np.stack([_shares_found(kind, index, tails) for kind in kinds])
    (first, second), by = score.mean(axis=1).tolist(), spread(index, score)
    error = spread(index, score[:1] - score[1:]).errors[0]
    return {
        "trained": _estimate(first, by.errors[0], share_interval(first, by.covariance[0, 0], by)),
        "baseline": _estimate(second, by.errors[1], share_interval(second, by.covariance[1, 1], by)),
        "difference": _estimate(first - second, error, difference_interval(first, second, by)),
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
        value, se, low and high, as in `recall_difference`.

    Raises
    ------
    CamaeError
        As `recall_difference`.
    """
    maps = _maps(seeds, names, "seeds")
    index = match_pairs(names, pairs).index
    score = _shares_found(maps, index, tails)[None]
    value, by = float(score.mean()), spread(index, score)
    return _estimate(value, by.errors[0], share_interval(value, by.covariance[0, 0], by))


def _maps(seeds: Sequence[Array], names: Labels, kind: str) -> list[Array]:
    """Maps of one kind, checked. Raises CamaeError where there is none, or one has other rows than `names`."""
    found = [named_rows(v, names, f"map {k} of {kind}")[0] for k, v in enumerate(seeds)]
    if not found:
        raise CamaeError(f"{kind} holds no map; give one (n, d) array for each random seed")
    return found


def _shares_found(maps: list[Array], index: npt.NDArray[np.intp], tails: Tails) -> npt.NDArray[np.float64]:
    """Share of the maps that find each pair, (pairs,). index: (pairs, 2) rows."""
    return np.mean([found_pairs(v, index, [tails])[0] for v in maps], axis=0)


def _estimate(value: float, error: float, interval: tuple[float, float]) -> dict[str, float]:
    return {"value": float(value), "se": float(error), "low": float(interval[0]), "high": float(interval[1])}
