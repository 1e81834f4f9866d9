"""The op table that doctor prints, and that importing the ops is light."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from camae.kernels import _dispatch
from camae.kernels._compile_ahead import OPS
from camae.kernels._cpu import instructions
from camae.kernels._dispatch import default_backend
from camae.kernels.op_table import op_table


def test_cpu_uses_plain_torch_and_its_own_attention_and_says_why_not_the_others():
    rows = {row.op: row for row in op_table("cpu")}
    assert set(rows) == {
        "tokenize",
        "reconstruction_loss",
        "varlen_attention",
        "residual_norm",
        "gelu_split",
        "lion",
        "transformer_block",
    }
    attention, block = rows.pop("varlen_attention"), rows.pop("transformer_block")
    assert attention.default == block.default == ("native" if instructions() else "reference")
    assert {row.default for row in rows.values()} == {"reference"}
    others = {b.name: b.why for b in attention.backends if not b.usable}
    assert "CUDA device" in others["torch_varlen"]
    assert "not installed" in others["flash_attn_4"] or "CUDA device" in others["flash_attn_4"]


@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "expected"),
    [
        ("cuda", torch.bfloat16, 64, "triton"),
        ("cuda", torch.float16, 16, "triton"),
        ("cuda", torch.bfloat16, 96, "torch_varlen"),
        ("cuda", torch.float32, 64, "reference"),
        ("cpu", torch.bfloat16, 64, "native" if instructions() else "reference"),
        ("cpu", torch.bfloat16, 24, "reference"),
        ("cpu", torch.float32, 24, "reference"),
    ],
)
def test_default_attention(device, dtype, head_dim, expected, monkeypatch):
    for package in ("flash_attn", "flash_attn_interface", "flash_attn.cute"):
        monkeypatch.setitem(_dispatch._INSTALLED, package, False)
    assert default_backend("varlen_attention", device, dtype, head_dim) == expected


def test_newest_flash_attention_first_where_our_kernels_do_not_fit(monkeypatch):
    """Head dim 96, packages installed one after the other, oldest first."""
    found = []
    for package in ("flash_attn", "flash_attn_interface", "flash_attn.cute"):
        monkeypatch.setitem(_dispatch._INSTALLED, package, True)
        found.append(default_backend("varlen_attention", "cuda", torch.bfloat16, 96))
    assert found == ["flash_attn", "flash_attn_3", "flash_attn_4"]


def test_every_preference_is_a_back_end_of_attention_and_has_a_reason():
    names = {backend.name for backend in _dispatch.backends_of("varlen_attention", "cpu")}
    for row in _dispatch.ATTENTION_PREFERENCES:
        assert set(row.order) <= names
        assert row.why


def test_kernels_are_the_default_on_cuda():
    rows = {row.op: row.default for row in op_table("cuda")}
    assert rows == {
        "tokenize": "triton",
        "reconstruction_loss": "triton",
        "varlen_attention": "triton",
        "residual_norm": "triton",
        "gelu_split": "triton",
        "lion": "triton",
        "transformer_block": "reference",
    }


@pytest.mark.parametrize("op", OPS)
def test_op_folders_are_alike(op):
    """The same files and functions in every folder; the optimizer alone has no torch.library op."""
    folder = Path(__file__).parents[2] / "kernels" / op
    assert (folder / "reference.py").exists()
    assert (folder / "registration.py").exists() != (op == "lion")
    assert "def compile_cases(" in (folder / "triton.py").read_text()
    module = importlib.import_module(f"camae.kernels.{op}")
    assert module.__doc__.startswith(f"{op}: ")
    assert [b.name for b in module.backends("cpu")][-1] == "reference"
    assert default_backend(op, "cpu") in {b.name for b in module.backends("cpu")}


def test_importing_the_ops_imports_no_triton():
    modules = ", ".join(
        f"camae.kernels.{op}" for op in (*OPS, "fused_linear", "transformer_block", "op_table")
    )
    code = f"import sys, {modules}; print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
