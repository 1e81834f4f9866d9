"""Recall of known relationships (paper, section 5.1, Tables 2 and 3, Figure 5 right).

A pair's rank is its place among the cosines of all unordered pairs of the map, known pairs included. A known pair
is found when the share of pairs at or below it is at most the left tail, or the share strictly below it at least
the right tail (searchsorted of the sorted null, side right and left): random vectors score left + 1 - right.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from camae.errors import CamaeError
from camae.kernels.arrays.cosine_tails import cosines_of_pairs, order_statistics
from camae.maps.arrays import embeddings, labels, listing, rows, unit_rows

Tails = tuple[float | None, float | None]
Pairs: TypeAlias = Sequence[tuple[str, str]] | np.ndarray | pd.DataFrame
COLUMNS = ("recall", "n_pairs", "n_found", "left", "right", "se")


@dataclass(frozen=True)
class KnownPairs:
    """Known relationships as rows of the map: index_P2 (unordered, distinct), and how many had to be left out."""

    index: np.ndarray
    unknown: int
    listed: int


def known_pairs(names: Any, pairs: Pairs, source: str = "pairs") -> KnownPairs:
    """Match `pairs` (2-tuples of names) to rows; labels match exactly.

    Self pairs and repeats (also reversed) are dropped, pairs with a name that the map lacks are dropped, counted
    and shown in a warning. Raises CamaeError for duplicated names, malformed pairs, or when no pair is left.
    """
    name_N = labels(names, len(names), "names")
    lookup = pd.Index(name_N.astype(object))
    if not lookup.is_unique:
        raise CamaeError(
            f"names holds {listing(lookup[lookup.duplicated()].unique())} more than once; aggregate to one row per "
            "perturbation first."
        )
    text = _as_text(pairs, source)
    index = np.stack([lookup.get_indexer(text[:, 0]), lookup.get_indexer(text[:, 1])], axis=1)
    unknown = (index < 0).any(axis=1)
    if unknown.any():
        first = text[unknown.argmax()]
        warnings.warn(
            f"{source}: {unknown.sum()} of {len(text)} pairs name a perturbation that the map lacks and are left out "
            f"(first: {first[0]} - {first[1]}).",
            stacklevel=3,
        )
    low, high = index[~unknown].min(axis=1, initial=len(name_N)), index[~unknown].max(axis=1, initial=-1)
    key = np.unique(low[low < high] * len(name_N) + high[low < high])
    if len(key) == 0:
        raise CamaeError(
            f"{source}: none of its {len(text)} pairs is in the map; check that the names are the same."
        )
    return KnownPairs(np.stack(np.divmod(key, len(name_N)), axis=1), int(unknown.sum()), len(text))


def _as_text(pairs: Any, source: str) -> np.ndarray:
    """Pairs as an object array (n, 2) of text, from 2-tuples, an array or a two-column DataFrame."""
    listed = pairs.to_numpy() if hasattr(pairs, "to_numpy") else pairs
    try:
        raw = np.array(listed if isinstance(listed, np.ndarray) else list(listed), dtype=object)
    except ValueError:
        raw = np.empty(0)
    if len(raw) == 0:
        raw = raw.reshape(0, 2) if raw.ndim == 1 and raw.dtype == object else raw
    if raw.ndim != 2 or raw.shape[1] != 2:
        raise CamaeError(f"{source} must be a sequence of 2-tuples of names; an entry has another length.")
    if pd.api.types.infer_dtype(raw.ravel(), skipna=False) == "string":
        return raw
    return raw.astype(str).astype(object)


def found_pairs(v: Any, index: np.ndarray, tails: Sequence[Tails]) -> np.ndarray:
    """Which pairs are found, booleans (tails, pairs). v: (n, d); index: (pairs, 2) rows. Exact, no n x n matrix."""
    unit = unit_rows(embeddings(v, "v"))
    total = unit.shape[0] * (unit.shape[0] - 1) // 2
    bounds = [_bounds(pair, total) for pair in tails]
    ranks = sorted({rank for pair in bounds for rank in pair if rank is not None})
    value = dict(zip(ranks, order_statistics(unit, ranks), strict=True))
    cosines = cosines_of_pairs(unit, index[:, 0], index[:, 1])
    found = np.zeros((len(bounds), len(index)), dtype=bool)
    for k, (left, right) in enumerate(bounds):
        if left is not None:
            found[k] |= cosines < value[left]
        if right is not None:
            found[k] |= cosines > value[right]
    return found


def _bounds(tails: Tails, total: int) -> tuple[int | None, int | None]:
    """Ranks whose values bound the tails: #{null <= s} / N <= left iff s < null[k], k the first count above left N.

    Likewise #{null < s} / N >= right iff s > null[m - 1], m the first count with m / N >= right. The counts are
    settled by the division itself, so that rounding falls as it does for a shared rank / N.
    """
    left, right = tails
    low = high = None
    for tail in (left, right):
        if tail is not None and not 0 <= tail <= 1:
            raise CamaeError(f"tails must lie between 0 and 1, got {tails}; (0.05, 0.95) is the paper's.")
    if left is not None:
        low = int(left * total)
        low += (low + 1) / total <= left
        low -= low / total > left
        low = low if low < total else None
    if right is not None:
        high = int(right * total)
        high += high / total < right
        high -= high > 0 and (high - 1) / total >= right
        high = high - 1 if high > 0 else None
    if (left is not None and low is None) or (right is not None and high is None):
        raise CamaeError(
            f"tails {tails} take in every pair; choose a left tail under 1 and a right tail above 0."
        )
    return low, high


def recall(
    v: Any,
    names: Any,
    pairs: Pairs | Mapping[str, Pairs],
    tails: Tails = (0.05, 0.95),
    bootstrap: int = 0,
    seed: int = 0,
) -> pd.DataFrame:
    """Share of known pairs in the tails of the map's cosines.

    v: (n, d), one row per perturbation, origin at the negative controls (nothing is re-centered). names: n distinct
    labels. pairs: a sequence of 2-tuples of names, or a dict of them by source. tails: (left, right) as shares of
    all unordered pairs; None switches a side off. bootstrap: resamples of perturbations for the standard error;
    0 gives NaN.
    Returns one row per source (index: the source, "pairs" for a plain sequence) with columns recall, n_pairs,
    n_found, left, right (the tails asked for), se; `attrs["n_unknown"]` counts the pairs left out by source.
    Raises CamaeError for duplicated names or when no pair is in the map.
    """
    sources = pairs if isinstance(pairs, Mapping) else {"pairs": pairs}
    known = {source: known_pairs(names, listed, source) for source, listed in sources.items()}
    bounds = np.cumsum([0] + [len(k.index) for k in known.values()])
    (found,) = found_pairs(v, np.concatenate([k.index for k in known.values()]), [tails])
    table = []
    for k, start, stop in zip(known.values(), bounds[:-1], bounds[1:], strict=True):
        hits = found[start:stop]
        se = float("nan")
        if bootstrap:
            se = float(bootstrap_shares(k.index, hits[None].astype(float), bootstrap, seed)[0].std(ddof=1))
        table.append((hits.mean(), len(hits), int(hits.sum()), *tails, se))
    out = pd.DataFrame(table, columns=list(COLUMNS), index=list(known))
    out.attrs["n_unknown"] = {source: k.unknown for source, k in known.items()}
    return out


def recall_curve(
    v: Any, names: Any, pairs: Pairs | Mapping[str, Pairs], percentiles: Sequence[float] | None = None
) -> pd.DataFrame:
    """Recall against the share of most extreme cosines (Figure 5, right), all points in one pass over the pairs.

    percentiles: shares p in (0, 1) of all pairs, p / 2 in each tail; 0.01, 0.02 .. 0.99 by default.
    Returns a tidy table: source, percentile, recall, n_pairs, n_found. Random vectors give recall = percentile.
    """
    shares = np.linspace(0.01, 0.99, 99) if percentiles is None else np.asarray(percentiles, dtype=float)
    sources = pairs if isinstance(pairs, Mapping) else {"pairs": pairs}
    known = {source: known_pairs(names, listed, source) for source, listed in sources.items()}
    index = np.concatenate([k.index for k in known.values()])
    found = found_pairs(v, index, [(share / 2, 1 - share / 2) for share in shares.tolist()])
    parts = np.split(found, np.cumsum([len(k.index) for k in known.values()])[:-1], axis=1)
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "source": source,
                    "percentile": shares,
                    "recall": part.mean(axis=1),
                    "n_pairs": part.shape[1],
                    "n_found": part.sum(axis=1),
                }
            )
            for source, part in zip(known, parts, strict=True)
        ],
        ignore_index=True,
    )


def recall_at_fpr(
    v: Any, names: Any, pairs: Pairs, fpr: float = 0.05, genes: Sequence[str] | None = None
) -> dict[str, float]:
    """Share of known pairs above the cosine that a share `fpr` of the unrelated pairs exceeds (paper, Table 5).

    genes: the gene set to restrict the map to (PoC-124, MoA-300, DG-1640). Unrelated: every pair that is not known.
    The threshold is the smallest unrelated cosine that at most fpr of them exceed.
    Returns recall, n_pairs, n_unrelated, threshold, n_genes.
    """
    if not 0 < fpr < 1:
        raise CamaeError(f"fpr must lie between 0 and 1, got {fpr}; 0.05 is the paper's.")
    v, name_N = embeddings(v, "v"), labels(names, len(names), "names")
    if genes is not None:
        kept = np.flatnonzero(np.isin(name_N, np.asarray(list(genes)).astype(str)))
        if len(kept) < 3:
            raise CamaeError(
                f"The map holds {len(kept)} of the gene set's names; check that the names are the same."
            )
        v, name_N = rows(v, kept), name_N[kept]
        chosen = set(name_N.tolist())
        pairs = [pair for pair in _as_text(pairs, "pairs") if pair[0] in chosen and pair[1] in chosen]
    index = known_pairs(name_N, pairs).index
    unit = unit_rows(v)
    total = unit.shape[0] * (unit.shape[0] - 1) // 2
    unrelated = total - len(index)
    if unrelated == 0:
        raise CamaeError(
            "Every pair of the gene set is known; there are no unrelated pairs to set a threshold."
        )
    known = cosines_of_pairs(unit, index[:, 0], index[:, 1])
    # The wanted unrelated value has rank r among the unrelated, so rank r .. r + known among all: find which.
    r = max(math.ceil((1 - fpr) * unrelated - 1e-9), 1) - 1
    candidates = order_statistics(unit, range(r, r + len(known) + 1))
    at_or_below = (
        np.arange(r, r + len(known) + 1) + 1 - np.searchsorted(np.sort(known), candidates, side="right")
    )
    threshold = candidates[np.searchsorted(_running_last(candidates, at_or_below), r + 1)]
    return {
        "recall": float((known > threshold).mean()),
        "n_pairs": float(len(known)),
        "n_unrelated": float(unrelated),
        "threshold": float(threshold),
        "n_genes": float(unit.shape[0]),
    }


def _running_last(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Counts at the last of equal values, so that a tie counts whole."""
    return counts[np.searchsorted(values, values, side="right") - 1]


def bootstrap_shares(index: np.ndarray, value: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Weighted means of value (k, pairs) under resampling of perturbations: (k, resamples).

    A perturbation drawn w times gives its pairs the weight w_a w_b; the percentiles of the null stay as they are.
    The spread is cautious: right for effects shared by a perturbation's pairs, up to sqrt(3) too large for
    independent ones (Owen 2007, the pigeonhole bootstrap). Resamples without any pair are drawn again.
    """
    members, local = np.unique(index, return_inverse=True)
    local = local.reshape(index.shape)
    rng = np.random.default_rng(seed)
    out: list[np.ndarray] = []
    for _ in range(100 * resamples):
        weight = np.bincount(rng.integers(0, len(members), len(members)), minlength=len(members))
        pair_weight = (weight[local[:, 0]] * weight[local[:, 1]]).astype(float)
        if pair_weight.sum() > 0:
            out.append(value @ pair_weight / pair_weight.sum())
        if len(out) == resamples:
            return np.stack(out, axis=1)
    raise CamaeError(f"The {len(index)} pairs are too few to resample perturbations; use bootstrap=0.")


def recall_difference(
    trained: Sequence[Any],
    baseline: Sequence[Any],
    names: Any,
    pairs: Pairs,
    tails: Tails = (0.05, 0.95),
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Recall of two kinds of embedding, each pooled over seeds, and their paired difference.

    trained, baseline: lists of v (n, d), one per seed, all with the same `names` (their lengths may differ). A
    pair's score is the share of seeds that find it; perturbations are resampled, the same draw for both kinds.
    Returns {"trained", "baseline", "difference"}, each {"value", "se"}.
    """
    index = known_pairs(names, pairs).index
    score = np.stack(
        [np.mean([found_pairs(v, index, [tails])[0] for v in seeds], axis=0) for seeds in (trained, baseline)]
    )
    score = np.concatenate([score, score[:1] - score[1:]])
    spread = bootstrap_shares(index, score, bootstrap, seed).std(axis=1, ddof=1)
    return {
        kind: {"value": float(value), "se": float(se)}
        for kind, value, se in zip(
            ("trained", "baseline", "difference"), score.mean(axis=1), spread, strict=True
        )
    }


def pooled_recall(
    seeds: Sequence[Any],
    names: Any,
    pairs: Pairs,
    tails: Tails = (0.05, 0.95),
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """Recall averaged over several maps of the same perturbations (one per seed): {"value", "se"} by bootstrap."""
    return recall_difference(seeds, seeds, names, pairs, tails, bootstrap, seed)["trained"]
