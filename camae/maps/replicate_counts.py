"""Replicate counts that confound recall: what random pairs of as many replicates as the known pairs would recall.

The vector of a perturbation with many replicates has little noise of its own, so what all wells share (an error of the
controls' mean, a batch effect that the alignment left) is a larger part of it, and such vectors look alike without any
relation. Where known pairs lie among well-replicated perturbations, as essential genes and reference compounds do,
recall is above chance on pure noise.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from camae.errors import CamaeError
from camae.maps.arrays import Array, Labels, takes_tensors
from camae.maps.inputs import check_result, check_seed, is_number, named_rows
from camae.maps.pairs import PairSources, match_sources
from camae.maps.recall import Tails, found_pairs
from camae.typed_settings import Limits

STRATUM = 20  # perturbations of like replicate counts, at the fewest, that stand in for each other
NOTABLE = 0.02  # excess over chance that is worth a word
_OF_SOURCES = ("recall", "matched", "se", "chance", "replicates_of_pairs", "replicates")


@takes_tensors
def matched_recall(
    v: Array,
    names: Labels,
    replicates: npt.ArrayLike,
    pairs: PairSources,
    tails: Tails = (0.05, 0.95),
    draws: int = 20,
    seed: int = 0,
) -> pd.DataFrame:
    """Recall of random pairs matched to the known ones by replicates: what recall is without any relation.

    Each perturbation is replaced by a random one of as many replicates (of a stratum of at least 20 with like
    counts), which keeps the network of pairs and its counts and breaks what is known of them.

    Parameters
    ----------
    v, names, pairs, tails
        As in `recall`.
    replicates : n integers
        Replicates of each perturbation; `ScreenMap.replicates`.
    draws : int
        Random replacements that are averaged.
    seed : int
        Of them.

    Returns
    -------
    DataFrame
        One row for each source (index): recall, matched (recall of the random pairs), se (of `matched`, over draws),
        chance (left + 1 - right), replicates_of_pairs (mean over the known pairs' perturbations, as often as they
        occur) and replicates (median over the map). `matched` above `chance` is recall that replicate counts alone
        explain.

    Raises
    ------
    CamaeError
        As `recall`, and when `replicates` is not one whole number for each name.
    """
    if not is_number(draws, Limits(low=2), whole=True):
        raise CamaeError(f"draws {draws} give no standard error; give 2 or more, whole")
    check_seed(seed)
    v, name_N = named_rows(v, names)
    known = match_sources(name_N, pairs)
    count, n = np.asarray(replicates), len(name_N)
    if count.dtype == object and all(isinstance(value, int | np.integer) for value in count.flat):
        count = count.astype(np.int64)
    if count.shape != (n,):
        raise CamaeError(f"replicates needs one number for each of the {n} names, got shape {count.shape}")
    if count.dtype.kind not in "fiu" or not ((count >= 0) & (count % 1 == 0)).all():
        raise CamaeError("replicates counts the rows of each perturbation; give whole numbers from 0 on")
    stratum, rng = _strata(count), np.random.default_rng(seed)
    stands_in = np.tile(np.arange(n), (draws, 1))
    for number in range(stratum.max() + 1):
        members = np.flatnonzero(stratum == number)
        for draw in range(draws):
            stands_in[draw, members] = rng.permutation(members)
    index = np.concatenate([k.index for k in known.values()])
    every = np.concatenate([index, *(one[index] for one in stands_in)])
    found = found_pairs(v, every, [tails])[0].reshape(draws + 1, len(index))
    left, right = tails
    chance = (left or 0.0) + (0.0 if right is None else 1 - right)
    table, start = {}, 0
    for source, k in known.items():
        own = found[:, start : start + len(k.index)].mean(axis=1)
        start += len(k.index)
        table[source] = {
            "recall": own[0],
            "matched": own[1:].mean(),
            "se": own[1:].std(ddof=1) / np.sqrt(draws),
            "chance": chance,
            "replicates_of_pairs": count[k.index].mean(),
            "replicates": float(np.median(count)),
        }
    return pd.DataFrame.from_dict(table, orient="index")


def _strata(count: np.ndarray) -> npt.NDArray[np.int64]:
    """Stratum of each perturbation: equal counts, neighbors joined until each has STRATUM members."""
    values, sizes = np.unique(count, return_counts=True)
    number, filled, of_value = 0, 0, []
    for size in sizes:
        if filled >= STRATUM:
            number, filled = number + 1, 0
        of_value.append(number)
        filled += int(size)
    if filled < STRATUM and number > 0:  # too few are left at the top
        of_value = [min(value, number - 1) for value in of_value]
    return np.array(of_value)[np.searchsorted(values, count)]


def replicate_warnings(table: pd.DataFrame) -> list[str]:
    """A sentence for each source of `matched_recall` whose matched random pairs recall notably more than chance."""
    check_result(table, _OF_SOURCES, "maps.matched_recall")
    notable = table[(table.matched - table.chance > NOTABLE) & (table.matched - table.chance > 3 * table.se)]
    return [
        f"{source}: replicate counts confound recall: random pairs of perturbations with as many replicates as the "
        f"known pairs ({row.replicates_of_pairs:.1f} on average, median of the map {row.replicates:.1f}) recall "
        f"{row.matched:.3f}, chance {row.chance:.3f}; compare the recall of {row.recall:.3f} with that"
        for source, row in notable.iterrows()
    ]
