"""Kernel tests in Triton's interpreter: TRITON_INTERPRET=1 must be set before Triton is imported.

So they run in a process of their own, which tests/kernels/test_interpreter.py starts; elsewhere nothing here is
collected. The interpreter has no bf16: everything is fp32 or fp16. Outputs are filled with NaN first, so that a
row a kernel forgets to write cannot pass.
"""

from __future__ import annotations

import os

import pytest
import torch

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]


@pytest.fixture(autouse=True)
def nan_filled_outputs(monkeypatch):
    """Tensor.new_empty, torch.empty and empty_like give NaN (integers: their smallest value)."""

    def filled(make):
        def wrapper(*args, **kwargs):
            x = make(*args, **kwargs)
            return x.fill_(float("nan")) if x.is_floating_point() else x.fill_(torch.iinfo(x.dtype).min)

        return wrapper

    monkeypatch.setattr(torch.Tensor, "new_empty", filled(torch.Tensor.new_empty))
    monkeypatch.setattr(torch, "empty", filled(torch.empty))
    monkeypatch.setattr(torch, "empty_like", filled(torch.empty_like))
