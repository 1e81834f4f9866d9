"""Learning rate as a pure function of the step."""

from __future__ import annotations

import math


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
