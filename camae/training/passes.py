"""Passes of bounded size: a batch of samples with different channel counts cut by tokens."""

from __future__ import annotations

import itertools
import math

from camae.errors import CamaeError


def cuts(tokens_B: tuple[int, ...], budget: int | None, at_least: int = 1) -> list[tuple[int, int]]:
    """(first, last + 1) samples of each pass: as few passes as `budget` tokens each allow, about equally full.

    tokens_B: tokens (planes x patches, masked ones included) of each sample. at_least: smallest number of passes,
    for ranks that have to make the same number. Raises CamaeError for a sample larger than the budget.
    """
    if budget is not None and max(tokens_B) > budget:
        raise CamaeError(
            f"token_budget {budget} is less than the {max(tokens_B)} tokens of one crop (planes x patches)"
        )
    total, limit = sum(tokens_B), budget or math.inf
    count = max(at_least, math.ceil(total / limit), 1)
    while True:
        found = _even_cuts(tokens_B, count)
        if all(sum(tokens_B[a:b]) <= limit for a, b in found):
            return found
        count += 1


def _even_cuts(tokens_B: tuple[int, ...], count: int) -> list[tuple[int, int]]:
    """`count` runs of consecutive samples, none empty, with cuts where the running sum is nearest to even."""
    ends = list(itertools.accumulate(tokens_B))
    edges = [0]
    for i in range(1, count):
        goal = ends[-1] * i / count
        room = range(edges[-1] + 1, len(tokens_B) - (count - i) + 1)
        edges.append(min(room, key=lambda b: abs(ends[b - 1] - goal)))
    edges.append(len(tokens_B))
    return list(itertools.pairwise(edges))
