"""`camae doctor`: versions, devices, back-ends of every op, and image codecs of this machine."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer

from camae.cli.console import say_table


def doctor(as_json: Annotated[bool, typer.Option("--json", help="as JSON")] = False) -> None:
    """Print device, versions, and which back-end each op will use and why."""
    findings = examine()
    if as_json:
        print(json.dumps(findings, indent=2))
        return
    for title, rows in findings.items():
        say_table(rows.items(), None, title)


def examine() -> dict[str, dict[str, str]]:
    """Everything `camae doctor` prints, by section: name -> finding."""
    from camae.versions import versions

    return {
        "versions": versions(),
        "devices": _devices(),
        "back-ends": _ops(),
        "codecs": _codecs(),
        "libraries": _libraries(),
    }


def _libraries() -> dict[str, str]:
    """Libraries that the paper's other systems are built on."""
    from camae.reproduction.systems._torchvision import describe

    return {"timm": describe()}


def _codecs() -> dict[str, str]:
    """Codec -> "own", the library that is linked, or the Python package that decodes it."""
    from camae.dataloader.backends.native import codecs
    from camae.errors import MissingBackendError

    try:
        return codecs()
    except MissingBackendError as error:
        return {"native reader": str(error)}


def _devices() -> dict[str, str]:
    import torch

    from camae.kernels._cpu import processor_instructions
    from camae.processors import cpu_model, usable_cpus

    instructions = ", ".join(processor_instructions()) or "no instruction sets that our C++ kernels have"
    threads = f"{torch.get_num_threads()} threads, {usable_cpus()} of {os.cpu_count()} CPUs usable"
    found = {"cpu": f"{cpu_model()} ({instructions}); {threads}"}
    for i in range(torch.cuda.device_count()):
        found[f"cuda:{i}"] = torch.cuda.get_device_name(i)
    return found


def _ops() -> dict[str, str]:
    """Op -> its default back-end here, why, and what each back-end says of itself."""
    import torch

    from camae.kernels.op_table import op_table
    from camae.model.backends import VARIABLE

    rows = {VARIABLE: os.environ.get(VARIABLE, "") or "not set: the defaults below"}
    return rows | {
        row.op: f"{row.default} ({row.why}); " + "; ".join(f"{b.name}: {b.why}" for b in row.backends)
        for row in op_table("cuda" if torch.cuda.is_available() else "cpu")
    }
