"""What is installed, what is missing, and which back-end each op will use and why."""

from __future__ import annotations

from typing import Any

from camae.versions import versions


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
    from camae.reproduction.systems._torchvision import describe

    return {"timm": describe()}


def _codecs() -> dict[str, str]:
    """Codec -> "own", the library that is linked, or the Python package that stands in for one."""
    from camae.dataloader.backends.native import codecs
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

    from camae.kernels.op_table import op_table

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return {
        row.op: {"uses": row.default, "why": row.why, "backends": row.backends} for row in op_table(device)
    }
