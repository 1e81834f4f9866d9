"""What is installed, what is missing, and which back-end each op will use and why."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
from typing import Any

_PACKAGES = ("camae", "torch", "triton", "numpy", "cupy-cuda13x", "nvidia-dali-cuda130", "flash-attn", "ray")


def versions() -> dict[str, str]:
    """Python, platform and the packages that matter; "absent" when not installed."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def op_backends(device: str | None = None) -> dict[str, str]:
    """The back-end each op uses by default on `device` (the GPU when there is one)."""
    return {op: row["uses"] for op, row in _ops(device).items()}


def examine() -> dict[str, dict[str, Any]]:
    """Everything `camae doctor` prints: versions, devices, ops, and which code decodes images."""
    ops = {
        op: f"{row['uses']} ({row['why']}); " + "; ".join(f"{b.name}: {b.why}" for b in row["backends"])
        for op, row in _ops(None).items()
    }
    return {"versions": versions(), "devices": _devices(), "back-ends": ops, "codecs": _codecs()} | {
        "libraries": _libraries()
    }


def _libraries() -> dict[str, str]:
    """What the paper's other systems are built on."""
    from camae.baselines._torchvision import describe

    return {"timm": describe()}


def _codecs() -> dict[str, str]:
    """Codec -> "own", the library that is linked, or the Python package that stands in for one."""
    from camae.dataloader.native import codecs
    from camae.errors import MissingBackendError

    try:
        return codecs()
    except MissingBackendError as error:
        return {"native reader": str(error)}


def _devices() -> dict[str, str]:
    import torch

    found = {"cpu": f"{torch.get_num_threads()} threads"}
    for i in range(torch.cuda.device_count()):
        found[f"cuda:{i}"] = torch.cuda.get_device_name(i)
    return found


def _ops(device: str | None) -> dict[str, dict[str, Any]]:
    import torch

    from camae.kernels.table import op_table

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return {
        row.op: {"uses": row.default, "why": row.why, "backends": row.backends} for row in op_table(device)
    }
