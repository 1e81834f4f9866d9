"""Average-linkage clustering that orders the rows of a heat map."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def cluster_order(similarity_NN: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """Leaf order of average-linkage clustering, each merge turned so that the most similar ends meet.

    similarity_NN: symmetric, larger is more alike. Returns a permutation of the N rows. O(N^3): for up to about
    a thousand rows.
    """
    full = np.asarray(similarity_NN, float)
    linkage = full.copy()
    np.fill_diagonal(linkage, -np.inf)
    leaves: dict[int, list[int]] = {i: [i] for i in range(len(full))}
    while len(leaves) > 1:
        a, b = divmod(int(linkage.argmax()), len(full))
        size_a, size_b = len(leaves[a]), len(leaves[b])
        merged = (size_a * linkage[a] + size_b * linkage[b]) / (size_a + size_b)
        linkage[a], linkage[:, a] = merged, merged
        linkage[a, a] = -np.inf
        linkage[b], linkage[:, b] = -np.inf, -np.inf
        leaves[a] = _join(leaves[a], leaves.pop(b), full)
    return np.array(next(iter(leaves.values())), np.int64)


def _join(left: list[int], right: list[int], similarity: npt.NDArray[np.floating]) -> list[int]:
    turns = [(a, b) for a in (left, left[::-1]) for b in (right, right[::-1])]
    best = max(turns, key=lambda turn: similarity[turn[0][-1], turn[1][0]])
    return best[0] + best[1]
