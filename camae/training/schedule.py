"""Learning rate and mask ratio as pure functions of the step."""

from __future__ import annotations

import itertools
import math
from typing import Any


def learning_rate(step: int, steps: int, peak: float, schedule: str, warmup: float) -> float:
    """Learning rate of optimizer step `step` (0-based) of `steps`.

    "onecycle": cosine from peak/25 up to peak over the warm-up share, then cosine down to peak/250,000 (the
    one-cycle policy of Smith and Topin). "cosine": linear warm-up from 0, then cosine to 0. "constant":
    linear warm-up, then constant.
    """
    top = warmup * steps
    if schedule == "onecycle":
        if step < top:
            return _cosine(peak / 25, peak, step / top)
        return _cosine(peak, peak / 250_000, (step - top) / max(1.0, steps - 1 - top))
    if step < top:
        return peak * (step + 1) / (top + 1)
    if schedule == "constant":
        return peak
    return _cosine(peak, 0.0, (step - top) / max(1.0, steps - top))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, share))) / 2


def mask_ratio_at(step: int, steps: int, schedule: Any) -> float:
    """Mask ratio of optimizer step `step` (0-based) of `steps`.

    schedule: a number; numbers to cycle through, one a step; or pairs (share of the run, ratio) joined by
    straight lines, constant before the first and after the last.
    """
    if isinstance(schedule, (int, float)):
        return float(schedule)
    if isinstance(schedule[0], (int, float)):
        return float(schedule[step % len(schedule)])
    share = step / max(1, steps - 1)
    if share <= schedule[0][0]:
        return float(schedule[0][1])
    for (left, low), (right, high) in itertools.pairwise(schedule):
        if share <= right:
            return float(low + (high - low) * (share - left) / (right - left))
    return float(schedule[-1][1])


def is_mask_schedule(schedule: Any) -> bool:
    """Whether `mask_ratio_at` understands it and every ratio is in (0, 1); None is the model's own ratio."""
    if schedule is None:
        return True
    if isinstance(schedule, (int, float)):
        return 0 < schedule < 1
    if not isinstance(schedule, tuple) or not schedule:
        return False
    if all(isinstance(s, (int, float)) for s in schedule):
        return all(0 < s < 1 for s in schedule)
    if not all(isinstance(s, tuple) and len(s) == 2 for s in schedule):
        return False
    shares = [s[0] for s in schedule]
    return all(a < b for a, b in itertools.pairwise(shares)) and all(0 < s[1] < 1 for s in schedule)
