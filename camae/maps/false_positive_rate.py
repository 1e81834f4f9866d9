"""Recall of known relationships at a fixed false-positive rate (Kraus et al., CVPR 2024, Table 5)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from camae.errors import CamaeError
from camae.kernels.arrays.cosine_tails import cosines_of_pairs, order_statistics
from camae.maps.arrays import Array, Labels, rows, takes_tensors, unit_rows
from camae.maps.inputs import is_number, labels, named_rows
from camae.maps.pairs import Pairs, match_pairs, pairs_as_text
from camae.typed_settings import Limits


@takes_tensors
def recall_at_fpr(
    v: Array, names: Labels, pairs: Pairs, fpr: float = 0.05, genes: Sequence[str] | None = None
) -> dict[str, float]:
    """Recall of known pairs at a false-positive rate, within a set of genes.

    Pairs that are not known count as unrelated, and those called related as false positives. The cosine that a share
    `fpr` of the unrelated pairs exceeds is the threshold; recall is the share of known pairs above it.

    Parameters
    ----------
    v : (n, d) array
        One row for each gene, origin at the negative controls; NumPy, CuPy or torch.
    names : n labels
        The genes, distinct.
    pairs : sequence of 2-tuples of names, (p, 2) array or DataFrame
        Known related pairs.
    fpr : float
        False-positive rate in (0, 1).
    genes : sequence of str, optional
        Gene set that the map is restricted to (the paper's PoC-124, MoA-300, DG-1640).

    Returns
    -------
    dict
        recall, n_pairs, n_unrelated, threshold (a cosine), n_genes.

    Raises
    ------
    CamaeError
        For an `fpr` outside (0, 1), a gene set that the map lacks, or when no pair, or every pair, is known.

    Notes
    -----
    The threshold is the smallest unrelated cosine that at most `fpr` of the unrelated exceed; exact.
    """
    if not is_number(fpr, Limits(above=0, below=1)):
        raise CamaeError(f"fpr must lie between 0 and 1, got {fpr}; 0.05 is the paper's")
    v, name_N = named_rows(v, names)
    if genes is not None:
        v, name_N, pairs = _within(v, name_N, pairs, genes)
    index = match_pairs(name_N, pairs).index
    unit = unit_rows(v)
    unrelated = unit.shape[0] * (unit.shape[0] - 1) // 2 - len(index)
    if unrelated == 0:
        raise CamaeError(
            "every pair of the gene set is known; there are no unrelated pairs to set a threshold"
        )
    known = cosines_of_pairs(unit, index[:, 0], index[:, 1])
    wanted = max(math.ceil((1 - fpr) * unrelated - 1e-9), 1)
    threshold = _unrelated_value(unit, np.sort(known), wanted)
    return {
        "recall": float((known > threshold).mean()),
        "n_pairs": float(len(known)),
        "n_unrelated": float(unrelated),
        "threshold": threshold,
        "n_genes": float(unit.shape[0]),
    }


def _within(
    v: Array, name_N: npt.NDArray[np.str_], pairs: Pairs, genes: Sequence[str]
) -> tuple[Array, npt.NDArray[np.str_], Pairs]:
    """Vectors, names and pairs of a gene set alone."""
    if isinstance(genes, str) or not isinstance(genes, Iterable):
        raise CamaeError(f"genes is {genes!r:.60}; give a list of names")
    chosen = genes if hasattr(genes, "__array__") else list(genes)
    kept = np.flatnonzero(np.isin(name_N, labels(chosen, None, "genes")))
    if len(kept) < 3:
        raise CamaeError(
            f"the map holds {len(kept)} of the gene set's names; check that the names are the same"
        )
    text = pairs_as_text(pairs, "pairs")
    inside = np.isin(text, name_N[kept].astype(object)).all(axis=1)
    return rows(v, kept), name_N[kept], text[inside]


def _unrelated_value(unit: Array, known: np.ndarray, wanted: int) -> float:
    """The `wanted`-th smallest cosine (from 1) of the pairs that are not known; known: sorted cosines.

    Among all pairs it has one of the 0-based ranks wanted - 1 .. wanted - 1 + len(known), as known pairs push it up.
    """
    ranks = np.arange(wanted - 1, wanted + len(known))
    candidates = order_statistics(unit, ranks.tolist())
    last_of_ties = ranks[np.searchsorted(candidates, candidates, side="right") - 1]
    unrelated_up_to = last_of_ties + 1 - np.searchsorted(known, candidates, side="right")
    return float(candidates[np.searchsorted(unrelated_up_to, wanted)])
