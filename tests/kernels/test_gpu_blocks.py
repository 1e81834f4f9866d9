"""A block's elementwise ops on a GPU: bf16 against fp64, and the memory of L/8."""

from __future__ import annotations

import pytest
import torch

from camae.dataloader.plane_batch import PlaneBatch
from camae.kernels.gelu_split import gelu_split
from camae.kernels.lion import Lion
from camae.kernels.residual_norm import residual_norm
from camae.kernels.varlen_attention import varlen_attention
from camae.model import CAMAE, Backends, preset
from camae.model.activation_checkpointing import set_recompute

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def normal(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).cuda()


def assert_as_good_as_torch(run) -> None:
    """Self-calibrated: no further from fp64 than twice plain torch with bf16 between the products."""
    truth, same, ours = (
        run("reference", torch.float64, torch.float64),
        run("reference", torch.float32, torch.bfloat16),
        run("triton", torch.float32, torch.bfloat16),
    )
    for a, t, e in zip(ours, same, truth, strict=True):
        assert torch.isfinite(a).all()
        error, allowed = ((x.double() - e).norm() / e.norm().clamp_min(1e-9) for x in (a, t))
        assert error <= 2 * allowed + 1e-6


@pytest.mark.parametrize("width", [256, 384, 1024])
@pytest.mark.parametrize("tokens", [1, 1537 * 3 + 5])
def test_residual_norm(width, tokens):
    segment = (torch.arange(tokens) % 3).sort().values.cuda()

    def run(backend, stream, working):
        x, gamma, weight, bias = (
            normal(*s, seed=i).to(stream).requires_grad_()
            for i, s in enumerate(((tokens, width), (width,), (width,), (width,)))
        )
        update = normal(tokens, width, seed=5).to(working).requires_grad_()
        factor = torch.tensor([0.0, 1.5, 2.0], dtype=stream).cuda()
        with torch.autocast("cuda", torch.bfloat16, enabled=working == torch.bfloat16):
            residual = (x, update, gamma, factor, segment)
            y, normed = residual_norm(*residual, weight, bias, eps=1e-6, backend=backend)
            normed = normed.to(working)  # what the product that follows takes
        loss = (y * normal(tokens, width, seed=6)).sum() + (normed * normal(tokens, width, seed=7)).sum()
        return y, normed, *torch.autograd.grad(loss, (x, update, gamma, weight, bias))

    assert_as_good_as_torch(run)


def test_gelu_split():
    widths = (4096, 1024, 1024, 1024)

    def run(backend, stream, working):
        fused = normal(3001, sum(widths)).to(working).requires_grad_()
        bias = normal(widths[0], seed=1).to(stream).requires_grad_()
        parts = [part.to(working) for part in gelu_split(fused, bias, widths, backend=backend)]
        loss = sum((p * normal(*p.shape, seed=i)).sum() for i, p in enumerate(parts))
        return *parts, *torch.autograd.grad(loss, (fused, bias))

    assert_as_good_as_torch(run)


@pytest.mark.parametrize("d", [16, 32, 64, 128])
def test_normed_attention(d):
    lengths = (1537, 231, 1, 700)
    cu = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32).cuda()

    def run(backend, stream, working):
        T = sum(lengths)
        q, k, v = (normal(T, 2, d, seed=i).to(working).requires_grad_() for i in range(3))
        norms = [(1 + 0.2 * normal(d, seed=3 + i)).to(stream).requires_grad_() for i in range(3)]
        shift = normal(d, seed=6).to(stream)  # k's bias shifts all scores of a row: no gradient
        pairs = {"q_norm": (norms[0], norms[1]), "k_norm": (norms[2], shift)}
        out = varlen_attention(q, k, v, cu, cu, backend=backend, **pairs)
        return out, *torch.autograd.grad((out * normal(T, 2, d, seed=7)).sum(), (q, k, v, *norms))

    assert_as_good_as_torch(run)


def test_l8_with_64_crops_fits_on_one_card():
    """6,144 tokens before masking, 75 % masked, norms and GELUs recomputed: peak at most 76 GiB."""
    names = ("DNA", "RNA", "ER", "AGP", "Mito", "Actin")
    if torch.cuda.get_device_properties(0).total_memory < 76 * 2**30:
        pytest.skip("the card has less than the 76 GiB that the target allows")
    model = CAMAE(
        preset("ca_mae_vit_l8", channels=names, decoder="small"),
        Backends("triton", "triton", "triton", "triton"),
    )
    model = model.cuda().train()
    set_recompute(model, 0, selective=True)
    optimizer = Lion(model.parameters(), clip_norm=1.0)
    g = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (6, 256, 256), generator=g).to(torch.uint8) for _ in range(64)]
    batch = PlaneBatch.from_images(images, [list(names)] * 64).to("cuda")
    noise = torch.rand(64 * 6144, generator=g).cuda()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(batch, noise, mask_ratio=0.75)["total"]
        loss.backward()
        optimizer.step()
    assert torch.isfinite(loss)
    assert torch.cuda.max_memory_allocated() <= 76 * 2**30
