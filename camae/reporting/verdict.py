"""The sentence that follows from a demo's numbers, and what its systems are."""

from __future__ import annotations

import numpy as np

from camae.reporting.run_folder import RunSummary, Score

SYSTEM_MEANING = {
    "random": "random vectors",
    "pixel": "pixel-intensity statistics",
    "untrained": "same encoder, untrained",
    "trained": "trained encoder",
    "texture": "gradients of standardized planes",
    "cells": "number and area of nuclei",
    "position": "place of the well on its plate",
    "shuffled": "trained encoder, labels shuffled",
    "oracle": "true factors of the cells (upper limit)",
}
_SURE = 2.0  # standard errors


def verdict(summary: RunSummary) -> str:
    """One or two sentences: whether the trained encoder beats the best baseline that needs no training.

    Beats: by at least two standard errors, with a 95 % interval (where there is one) above 0. Of a summary without such
    a comparison, the one with the untrained encoder; empty when there is neither.
    """
    gain = summary.get("trained_minus_best")
    if gain is None:
        return _against_untrained(summary)
    baseline = summary["best_baseline"]
    what = f"{baseline!r} ({SYSTEM_MEANING.get(baseline, baseline)})"
    points, error = 100 * gain["value"], 100 * gain["se"]
    far = abs(points) >= _SURE * error
    chance = gain["low"] < 0 < gain["high"] if "low" in gain and "high" in gain else not far
    first = "The trained encoder wins" if points > 0 and far and not chance else "Training does not win"
    screens = summary.get("screens")
    where = f" on {len(screens)} screens" if screens else ""
    apart = f"{abs(points) / error:.1f} standard errors" if error else "no standard error"
    return (
        f"{first}{where}: the trained encoder finds {abs(points):.1f} ± {error:.1f} points{_interval(gain)} "
        f"{'more' if points > 0 else 'fewer'} of the known pairs than the best baseline without training, {what}: "
        f"{apart}{', which chance alone may give' if chance else ''}.{_why_they_differ(gain, far, chance)}"
    )


def _why_they_differ(gain: Score, far: bool, chance: bool) -> str:
    """A sentence for a reader who sees the interval and the standard error say different things; "" where they agree.

    The interval is Newcombe's, of two shares (`maps.recall_difference`), longer on one side; a standard error is the
    same on both. Of several screens the interval keeps that proportion.
    """
    if "low" not in gain or "high" not in gain or far is not chance:
        return ""
    lies = "holds 0" if chance else "leaves out 0"
    return (
        f" The interval {lies} and the difference is {'above' if far else 'below'} {_SURE:.0f} standard errors: an "
        "interval of shares is longer on one side, a standard error is not. To win takes both."
    )


def _interval(gain: Score) -> str:
    """The 95 % interval of a difference in points, turned so that the difference is positive; "" without one."""
    if "low" not in gain or "high" not in gain:
        return ""
    ends = sorted(100 * np.sign(gain["value"] or 1) * np.array([gain["low"], gain["high"]]))
    return f" (95 % interval {ends[0]:.1f} to {ends[1]:.1f})"


def _against_untrained(summary: RunSummary) -> str:
    gain = summary.get("trained_minus_untrained")
    if gain is None:
        return ""
    ratio = gain["value"] / gain["se"] if gain["se"] > 0 else float("inf")
    found = "more" if gain["value"] > 0 else "fewer"
    return (
        f"The trained encoder finds {abs(100 * gain['value']):.1f} points {found} of the known pairs than the same "
        f"encoder untrained: {abs(ratio):.1f} standard errors."
    )
