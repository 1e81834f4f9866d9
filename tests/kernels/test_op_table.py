"""The op table that doctor prints, and that importing the ops is light."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from camae.errors import CamaeError
from camae.kernels import _dispatch
from camae.kernels._compile_ahead import OPS
from camae.kernels._cpu import instructions
from camae.kernels._dispatch import default_backend
from camae.kernels.op_table import op_table
from camae.kernels.varlen_attention.packages import cudnn_attention, package_attention
from camae.model import CAMAE, preset
from camae.model.backends import Backends


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
        ("cuda", torch.bfloat16, 12, "reference"),
        ("cuda", torch.bfloat16, 264, "reference"),
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


@pytest.mark.parametrize(
    ("patch", "expected"), [(4, "reference"), (8, "triton"), (14, "reference"), (16, "triton")]
)
def test_defaults_by_patch(patch, expected):
    for op in ("tokenize", "reconstruction_loss"):
        assert default_backend(op, "cuda", size=patch) == expected


@pytest.mark.parametrize("name", ["torch_varlen", "flash_attn"])
def test_a_head_dim_that_packages_lack_is_refused(name):
    q, cu = torch.zeros(2, 1, 12), torch.tensor([0, 2], dtype=torch.int32)
    with pytest.raises(CamaeError, match=f"{name} takes head dims that are multiples of 8 up to 256, not 12"):
        package_attention(name, q, q, q, cu, cu, (2, 2), 1.0, False)


def test_a_head_dim_that_cudnn_lacks_is_refused():
    q = torch.zeros(2, 1, 12)
    with pytest.raises(CamaeError, match="cudnn takes head dims that are multiples of 8 up to 256, not 12"):
        cudnn_attention(q, q, q, [2], [2], None)


def test_a_models_back_ends_are_named_by_its_sizes():
    """Patch 4 and a decoder with heads of 12: what runs on CUDA is what is reported."""
    changes = {
        "patch": 4,
        "crop": 32,
        "channels": ("a",),
        "decoder": {"width": 48, "heads": 4, "cross_heads": 4},
    }
    sizes = CAMAE(preset("ca_mae_vit_ti16", **changes)).op_sizes()
    names = Backends().names("cuda", sizes=sizes)
    assert names["loss"] == names["tokenize"] == "reference"
    assert names["attention"] == "triton+reference"


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
