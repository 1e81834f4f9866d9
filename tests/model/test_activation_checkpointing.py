"""Selective activation checkpointing: the same gradients from fewer saved bytes, by a formula."""

from __future__ import annotations

import pytest
import torch

from camae.kernels import _dispatch
from camae.model import CAMAE, preset
from camae.model.activation_checkpointing import set_recompute
from camae.model.backends import Backends
from camae.model.blocks import ParallelBlock, Sequences, SequentialBlock
from camae.model.token_layout import cumulative, kept_count


@pytest.fixture(scope="module")
def floors(bench_module):
    return bench_module("floors")


@pytest.fixture
def on_kernels(monkeypatch):
    """The ops that a GPU runs, by their formulas."""
    monkeypatch.setattr(_dispatch, "choose", lambda op, requested, device, *_: "triton")


def gradients(model, keep, dtype):
    set_recompute(model, 0, selective=not keep)
    model.zero_grad()
    torch.manual_seed(0)
    images = [torch.randint(0, 256, (c, 32, 32)).to(torch.uint8) for c in (3, 1)]
    batch = model.as_batch(images[0], ["a", "b", "c"])
    noise = torch.rand(3 * 16)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = model(batch, noise)["total"]
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", ["parallel", "sequential"])
@pytest.mark.parametrize("bias_layout", ["mlp", "timm<=1.0.24"])
def test_gradients_are_those_of_kept_activations(block, bias_layout, dtype):
    torch.manual_seed(0)
    options = {"width": 32, "depth": 2, "heads": 2, "crop": 32, "drop_path": 0.3, "layer_scale": 0.5}
    decoder = {"width": 32, "depth": 1, "heads": 2, "cross_heads": 2, "cross_residual": True}
    names = ("a", "b", "c")
    kinds = {"block": block, "bias_layout": bias_layout}
    model = CAMAE(preset("ca_mae_vit_ti8", channels=names, decoder=decoder, **options, **kinds)).train()
    loss, kept = gradients(model, True, dtype)
    again, recomputed = gradients(model, False, dtype)
    assert kept.keys() == recomputed.keys()
    # The same numbers computed twice; fp32 sums in another order: 1e-6 of the largest. In bf16 the kept form
    # leaves the rounding between norm and product to autocast, the other does it itself: 2^-8 and some.
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    assert abs(again / loss - 1) < tolerance
    for name, expected in kept.items():
        error = (recomputed[name] - expected).norm() / expected.norm().clamp_min(1e-6)
        assert error < tolerance, (name, float(error))


def kept_bytes(block, tokens):
    """Bytes of distinct storages that autograd keeps for one block, in the number of tokens."""
    lengths = (tokens // 2, tokens - tokens // 2)
    sequences = Sequences(cumulative(lengths, torch.device("cpu")), lengths)
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(tokens, block.width).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = block(x, sequences)
    out.sum().backward()
    return sum(storages.values())


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("kind", ["parallel", "sequential"])
def test_kept_bytes_are_as_computed(floors, on_kernels, kind, keep):
    """What does not grow with the tokens (weights) falls out of the difference of two sizes."""
    width, heads = 32, 2
    if kind == "parallel":
        block = ParallelBlock(preset("ca_mae_vit_ti8", width=width, heads=heads), 0.0)
    else:
        block = SequentialBlock(width, heads, 4 * width, 1e-6)
    block.use_backends(Backends(attention="triton"))
    block.width = width
    set_recompute(block, 0, selective=not keep)
    per_token = (kept_bytes(block, 64) - kept_bytes(block, 32)) / 32
    formula = {"parallel": floors.parallel_block_kept, "sequential": floors.sequential_block_kept}[kind]
    assert per_token == formula(width, heads, keep, stream=4, working=4)


def test_counts_by_tile():
    """keep_multiple: the paper's counts by default, whole tiles where the sample has room for them."""
    assert [kept_count(1536, r) for r in (0.75, 0.85)] == [384, 230]
    assert [kept_count(1536, r, 128) + 1 for r in (0.75, 0.85)] == [384, 256]
    assert kept_count(6144, 0.75, 128) + 1 == 1536
    assert kept_count(256, 0.75, 128) == 64  # 65 tokens: fewer than a tile
    assert kept_count(200, 0.1, 128) == 127
    assert kept_count(130, 0.0, 128) == 127
    assert kept_count(250, 0.0, 128) == 250  # 256 tokens would need 255 patches
