"""Shared setup of the training benches: encoder, decoder, settings, and the folder of their pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rows import RESULTS, SCRATCH, device_name

DECODER: dict[str, Any] = {
    "width": 64,
    "depth": 0,
    "cross_depth": 2,
    "cross_heads": 4,
    "heads": 4,
    "context": "visible",
    "cross_residual": True,
    "local_start": True,
    "part": 0.65,
}
ENCODER: dict[str, Any] = {"crop": 128, "width": 96, "depth": 4, "heads": 3, "drop_path": 0.0}
SETTINGS: dict[str, Any] = {
    "optimizer": "adamw",
    "lr": 3e-3,
    "batch_size": 16,
    "weight_decay": 0.05,
    "val": "plate",
    "quiet": True,
}
TINY: dict[str, Any] = {"crop": 64, "width": 48, "depth": 2, "heads": 3, "drop_path": 0.0}


def folder(full: bool) -> Path:
    path = (RESULTS if full else SCRATCH) / device_name("cpu")
    path.mkdir(parents=True, exist_ok=True)
    return path
