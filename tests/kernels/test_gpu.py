"""The kernels on a GPU, in bf16 against fp64, self-calibrated, at production shapes."""

from __future__ import annotations

import pytest
import torch

from camae.errors import CamaeError
from camae.kernels.lion import Lion
from camae.kernels.reconstruction_loss import reconstruction_losses
from camae.kernels.tokenize import plane_statistics, tokenize
from camae.kernels.varlen_attention import backends, varlen_attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

STORED = [torch.uint8, torch.uint16, torch.float32]


def planes(stored: torch.dtype, K: int = 48, side: int = 256) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(
        0, 255 if stored == torch.uint8 else 65535, (K, side, side), generator=g, dtype=torch.int32
    )
    return (x / 65535.0 if stored == torch.float32 else x.to(stored)).cuda()


def relative(a: torch.Tensor, truth: torch.Tensor) -> float:
    return float((a.double() - truth.double()).norm() / truth.double().norm())


@pytest.mark.parametrize("stored", STORED)
def test_statistics(stored):
    x = planes(stored)
    for a, e in zip(plane_statistics(x), plane_statistics(x, backend="reference"), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=0)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("patch", [8, 16])
@pytest.mark.parametrize("working", [torch.bfloat16, torch.float32])
def test_tokenize(stored, patch, working):
    """Forward and every gradient no further from fp64 than twice plain torch in the same dtype."""
    x, N, D, B = planes(stored), (256 // patch) ** 2, 384, 10
    sample_K = torch.tensor(
        [i for i, c in enumerate((6, 1, 11, 0, 3, 5, 6, 6, 5, 5)) for _ in range(c)]
    ).cuda()
    g = torch.Generator().manual_seed(0)
    keep = torch.randperm(48 * N, generator=g)[: 48 * N // 4].sort().values.cuda()
    sizes = ((D, patch**2), (D,), (N, D), (D,))
    parameters = [torch.randn(s, generator=g, dtype=torch.float64).cuda() * 0.1 for s in sizes]
    slope = torch.randn(len(keep) + B, D, generator=g, dtype=torch.float64).cuda()

    def run(backend, dtype):
        ps = [p.to(dtype).requires_grad_() for p in parameters]
        tokens = tokenize(x, sample_K, keep, *ps, eps=1e-3, n_samples=B, backend=backend)
        return tokens, *torch.autograd.grad((tokens * slope.to(dtype)).sum(), ps)

    truth, torch_same, ours = (
        run("reference", torch.float64),
        run("reference", working),
        run("triton", working),
    )
    for a, t, e in zip(ours, torch_same, truth, strict=True):
        assert torch.isfinite(a).all()
        assert relative(a, e) <= 2 * relative(t, e) + 1e-6


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("patch", [8, 16])
def test_reconstruction_loss(stored, patch):
    """bf16 predictions: the loss within 1e-3 and the gradient within 2e-3 of fp64 on the same values."""
    x, g, M = planes(stored), torch.Generator().manual_seed(0), 5001
    plane_M, patch_M = (torch.randint(0, n, (M,), generator=g).cuda() for n in (48, (256 // patch) ** 2))
    pred = torch.randn(M, patch**2, generator=g).cuda().bfloat16()
    results = {}
    for backend, values in (("triton", pred), ("reference", pred.double())):
        values = values.clone().requires_grad_()
        losses = reconstruction_losses(values, x, plane_M, patch_M, 0.01, eps=1e-3, backend=backend)
        losses[0].backward()
        results[backend] = (*losses, values.grad)
    for a, e in zip(results["triton"][:3], results["reference"][:3], strict=True):
        assert abs(a.item() / e.item() - 1) < 1e-3
    assert relative(results["triton"][3], results["reference"][3]) < 2e-3


LENGTHS = [
    ((1537,) * 4, (1537,) * 4),
    ((33_000,), (33_000,)),
    (tuple(range(1, 300, 7)), tuple(range(1, 300, 7))),
    ((1536, 256, 0, 768), (385, 65, 7, 0)),
]


@pytest.mark.parametrize(("lengths_q", "lengths_k"), LENGTHS)
@pytest.mark.parametrize("d", [16, 32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention(lengths_q, lengths_k, d, dtype):
    """Self-calibrated: no further from fp32 than twice torch's own attention in the same dtype."""
    g = torch.Generator().manual_seed(0)
    inputs = [torch.randn(sum(n), 2, d, generator=g).cuda() for n in (lengths_q, lengths_k, lengths_k)]
    cu_q, cu_k = (torch.tensor([0, *n]).cumsum(0).to(torch.int32).cuda() for n in (lengths_q, lengths_k))
    slope = torch.randn(inputs[0].shape, generator=g).cuda()

    def run(backend, working):
        q, k, v = (x.to(dtype).to(working).requires_grad_() for x in inputs)
        out = varlen_attention(q, k, v, cu_q, cu_k, backend=backend)
        return out, *torch.autograd.grad((out * slope.to(dtype).to(working)).sum(), (q, k, v))

    truth, same, ours = run("reference", torch.float32), run("reference", dtype), run("triton", dtype)
    for a, t, e in zip(ours, same, truth, strict=True):
        assert torch.isfinite(a).all()
        assert (a.float() - e).abs().max() <= 2 * (t.float() - e).abs().max() + 1e-5


def test_every_usable_attention_backend_agrees():
    lengths = (385, 1, 257)
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(sum(lengths), 6, 64, generator=g).cuda().bfloat16() for _ in range(3))
    cu = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32).cuda()
    truth = varlen_attention(q.float(), k.float(), v.float(), cu, cu, backend="reference")
    for backend in backends("cuda"):
        if backend.name == "cudnn":  # refuses the sequence of one token
            with pytest.raises(CamaeError, match="one token"):
                varlen_attention(q, k, v, cu, cu, backend="cudnn")
        elif backend.usable:
            out = varlen_attention(q, k, v, cu, cu, backend=backend.name)
            # bf16 keeps 8 bits of values of order 1.
            assert (out.float() - truth).abs().max() < 2e-2, backend.name


def test_attention_backward_is_deterministic():
    g = torch.Generator().manual_seed(0)
    q = torch.randn(6000, 4, 64, generator=g).cuda().bfloat16().requires_grad_()
    cu = torch.tensor([0, 3500, 6000], dtype=torch.int32).cuda()
    grads = [
        torch.autograd.grad(
            varlen_attention(q, q, q, cu, cu, backend="triton", deterministic=True).float().sum(), q
        )[0]
        for _ in range(2)
    ]
    assert torch.equal(*grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lion(dtype):
    """Ten clipped steps equal to torch's foreach on the same gradients."""

    def train(backend):
        g = torch.Generator().manual_seed(0)
        sizes = ((768, 768), (3072, 768), (768,), (1,))
        params = [torch.nn.Parameter(torch.randn(s, generator=g).cuda().to(dtype)) for s in sizes]
        optimizer = Lion(params, lr=1e-3, clip_norm=1.0, backend=backend)
        for _ in range(10):
            for p in params:
                p.grad = torch.randn(p.shape, generator=g).cuda().to(dtype)
            optimizer.step()
        return params

    for a, b in zip(train("triton"), train("reference"), strict=True):
        # A sign at rounding distance from 0 may differ: 2 lr in a few of 3 million places.
        differs = (a.float() - b.float()).abs() > 1e-5
        assert differs.float().mean() < 1e-5


@pytest.mark.parametrize("name", ["ca_mae_vit_l16", "ca_mae_vit_l8"])
def test_training_and_embedding_step_at_full_size(name):
    """One step of a large model with the small decoder in bf16 autocast, and one embedding pass."""
    from camae.dataloader.plane_batch import PlaneBatch
    from camae.model import CAMAE, Backends, preset

    channels = ("a", "b", "c", "d", "e", "f")
    config = preset(name, channels=channels, decoder="small")
    model = CAMAE(config, Backends("triton", "triton", "triton")).cuda()
    optimizer = Lion(model.parameters(), lr=1e-4, clip_norm=1.0)
    samples = 32 if config.patch == 16 else 8
    images = list(torch.randint(0, 255, (samples, 6, 256, 256), dtype=torch.uint8))
    batch = PlaneBatch.from_images(images, [channels] * samples).to("cuda")
    noise = torch.rand(samples * 6 * config.n_patches, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        losses = model.batch_loss(batch, noise)
        losses["total"].backward()
        optimizer.step()
        with torch.no_grad():
            tokens, _ = model.encode(batch)
    assert torch.isfinite(losses["total"])
    assert torch.isfinite(tokens).all()
    assert tokens.shape[0] == samples * (6 * config.n_patches + 1)
