"""bench/KERNELS.md is what its script makes of the committed budgets."""

from __future__ import annotations

import importlib.util
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench"


def test_committed_file_is_generated():
    spec = importlib.util.spec_from_file_location("kernel_counts", BENCH / "kernel_counts.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (BENCH / "KERNELS.md").read_text() == module.document(), (
        "run python bench/kernel_counts.py and commit"
    )
