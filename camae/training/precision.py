"""Precision of a run: float32, or bfloat16 autocast over float32 master weights; on a CPU chosen by measuring."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

AUTO = "auto"
LEAST_GAIN = 1.1  # bf16 has to be faster by this factor, since it rounds
_ROUNDS = 3


def first_precision(setting: str | None, device: torch.device) -> str:
    """Precision of a setting before anything is measured: "fp32" or "bf16"; auto is bf16 on CUDA, fp32 elsewhere."""
    if setting in (None, AUTO):
        return "bf16" if device.type == "cuda" else "fp32"
    return str(setting)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Context of a pass in a precision."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def measured_gain(model: nn.Module, run_pass: Callable[[str], object]) -> float:
    """Times that a pass is faster in bf16 than in fp32: the median over rounds of both in turn, after one of each.

    run_pass: a forward and backward pass in the precision named. Gradients are cleared and buffers are what they were:
    the run is the same as one whose precision was set.
    """
    before = [buffer.clone() for buffer in model.buffers()]
    seconds: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for _ in range(1 + _ROUNDS):
        for precision, taken in seconds.items():
            start = time.perf_counter()
            run_pass(precision)
            taken.append(time.perf_counter() - start)
            model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, value in zip(model.buffers(), before, strict=True):
            buffer.copy_(value)
    pairs = list(zip(seconds["fp32"], seconds["bf16"], strict=True))[1:]
    return statistics.median(fp32 / bf16 for fp32, bf16 in pairs)


def chosen(gain: float) -> tuple[str, str]:
    """Precision for a measured gain, and the sentence that says so in the log."""
    precision = "bf16" if gain >= LEAST_GAIN else "fp32"
    return precision, (
        f"precision {precision}: a pass of the first batch took {1 / gain:.2f} times as long in bf16 as in fp32 on "
        f"this machine, and bf16 is taken from a gain of {LEAST_GAIN} times on; precision='fp32' or 'bf16' sets it"
    )
