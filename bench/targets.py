"""Targets on an H100, and what the newest row of bench/results says of each: the last table of FLOORS.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
GPU = "nvidia-h100-80gb-hbm3"
Row = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """What an H100 is to reach (an A100 the same fractions of its limits), and the row that says whether it does.

    file, case: rows file, and the row's case or its beginning. measured: the figure in words, from the row.
    """

    name: str
    target: str
    against: str
    file: str
    case: str
    measured: Callable[[Row], str]


def _floor(row: Row) -> str:
    against = row["competitor_seconds"]["eager torch"] / row["seconds"]["median"]
    return f"{row['fraction_of_floor']:.0%} of the floor; {against:.0f}x eager torch"


def _attention(row: Row) -> str:
    ratios = [
        f"{seconds / row['seconds']['median']:.2f}x {name}"
        for name, seconds in row["competitor_seconds"].items()
        if name in ("torch_varlen", "cudnn")
    ]
    return f"{row['tflops']:.0f} TFLOP/s; {', '.join(ratios)}"


def _step(row: Row) -> str:
    beside = f"; {row['ratio']:.2f}x {row['competitor']}" if row["competitor"] else ""
    return f"{row['mfu']:.0%} MFU, {row['crops_per_second']:.0f} crops/s, {row['peak_gib']:.0f} GiB{beside}"


def _embedding(row: Row) -> str:
    rates = dict(row["crops_per_second"])
    eager = rates.pop("timm-style eager")
    best = max(rates, key=lambda name: rates[name])
    return f"{rates[best]:.0f} crops/s ({best}); {rates[best] / eager:.1f}x timm-style eager in fp16"


def _seconds(row: Row) -> str:
    return f"{row['seconds']['median']:.2f} s"


TARGETS = (
    Target(
        "statistics + tokenize, L/16 85 %, uint8, 256 crops",
        "65 % of the byte floor",
        "12x eager torch",
        "kernels",
        "statistics + tokens, L/16 85 %, uint8",
        _floor,
    ),
    Target(
        "reconstruction_loss, forward + gradient, L/16",
        "50 % of max(bytes, transforms)",
        "15x eager torch",
        "kernels",
        "forward + gradient, L/16",
        _floor,
    ),
    Target(
        "varlen attention d = 64, T = 6145, forward",
        "400 TFLOP/s",
        "1.2x torch's FlashAttention-2",
        "kernels",
        "forward, encoder L/8, T = 6145",
        _attention,
    ),
    Target(
        "varlen attention d = 64, T = 6145, backward",
        "315 TFLOP/s",
        "1.1x torch's FlashAttention-2",
        "kernels",
        "backward, encoder L/8, T = 6145",
        _attention,
    ),
    Target(
        "decoder attention d = 32, T = 256, forward",
        "1.1x the best",
        "at least two named back-ends",
        "kernels",
        "forward, decoder within a channel",
        _attention,
    ),
    Target(
        "decoder attention d = 32, T = 256, backward",
        "1.1x the best",
        "at least two named back-ends",
        "kernels",
        "backward, decoder within a channel",
        _attention,
    ),
    Target(
        "decoder attention d = 64, cross 1536, forward",
        "1.1x the best",
        "at least two named back-ends",
        "kernels",
        "forward, decoder cross, 1536",
        _attention,
    ),
    Target(
        "decoder attention d = 64, cross 1536, backward",
        "1.1x the best",
        "at least two named back-ends",
        "kernels",
        "backward, decoder cross, 1536",
        _attention,
    ),
    Target(
        "training step, L/16 85 %, small decoder, 256 crops",
        "50 % MFU",
        "-",
        "kernels",
        "L/16 85 %, small decoder",
        _step,
    ),
    Target(
        "the same, 128 crops",
        "-",
        "1.5x eager torch bf16 + SDPA",
        "kernels",
        "L/16 85 %, 128 crops",
        _step,
    ),
    Target(
        "training step, L/8 75 %, small decoder, 64 crops",
        "45 % MFU, peak <= 76 GiB",
        "-",
        "kernels",
        "L/8 75 %, recomputed",
        _step,
    ),
    Target("embedding S/16, bf16", "3,500 crops/s", "1.8x eager", "embedding", "S/16", _embedding),
    Target("embedding L/16, bf16", "410 crops/s", "1.8x eager", "embedding", "L/16", _embedding),
    Target("embedding L/8, bf16", "55 crops/s", "1.8x eager", "embedding", "L/8", _embedding),
    Target("cosine tails, 136,000 x 1024", "1 s", "-", "maps", "[136000, 1024]", _seconds),
)


def _rows(file: str) -> Iterator[Row]:
    path = RESULTS / GPU / f"{file}.jsonl"
    if path.exists():
        yield from (json.loads(line) for line in path.read_text().splitlines())


def measured(target: Target) -> str:
    """The figure of the newest row, or "not measured". Rows of back-ends that are no default are left out."""
    found = [
        row
        for row in _rows(target.file)
        if str(row.get("case") or row["shape"]).startswith(target.case)
        and row.get("backend") != "triton_atomic"
    ]
    return target.measured(found[-1]) if found else "not measured"
