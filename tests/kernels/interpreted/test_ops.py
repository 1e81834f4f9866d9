"""Every kernel against its plain-torch reference in fp64, in Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from camae.errors import CamaeError
from camae.kernels.lion import Lion
from camae.kernels.reconstruction_loss import reconstruction_losses
from camae.kernels.tokenize import plane_statistics, tokenize
from camae.kernels.tokenize import triton as tokenize_triton
from camae.kernels.tokenize.triton import CONFIGS, Tile
from camae.kernels.varlen_attention import varlen_attention

DTYPES = [torch.uint8, torch.uint16, torch.float32]


def tokens_and_gradients(case, backend, dtype):
    parameters = [p.to(dtype).requires_grad_() for p in case.parameters]
    tokens = tokenize(
        case.planes_KHW,
        case.sample_K,
        case.keep_index,
        *parameters,
        eps=case.eps,
        n_samples=case.n_samples,
        backend=backend,
    )
    slope = torch.linspace(-1, 1, tokens.numel(), dtype=torch.float64).reshape(tokens.shape).to(dtype)
    return tokens, *torch.autograd.grad((tokens * slope).sum(), parameters)


@pytest.mark.parametrize("patch", [4, 12, 14])
def test_a_patch_that_no_tile_divides_is_refused(patch):
    """The tiles of the kernel are powers of two: it gave wrong values for 12 and 14."""
    plane, index = torch.zeros(1, 4 * patch, 4 * patch), torch.zeros(1, dtype=torch.int64)
    parameters = torch.zeros(4, patch**2), torch.zeros(4), torch.zeros(16, 4), torch.zeros(4)
    with pytest.raises(CamaeError, match=f"tokenize: the kernel has patches of 8 and 16 px, not {patch}"):
        tokenize(plane, index, None, *parameters, eps=1e-6, n_samples=1, backend="triton")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("patch", [8, 16])
@pytest.mark.parametrize("keep", ["all", "random", "one", "none"])
def test_tokenize(tokenize_case, dtype, patch, keep):
    """Ragged samples (one without planes), a width that no tile divides, gradients of all parameters."""
    case = tokenize_case(dtype, patch, keep)
    truth = tokens_and_gradients(case, "reference", torch.float64)
    got = tokens_and_gradients(case, "triton", torch.float32)
    for a, b in zip(got, truth, strict=True):
        # fp32 sums of at most 256 terms: 16 * 6e-8 of the largest value, times 4; gradients likewise over tokens.
        torch.testing.assert_close(a.double(), b, rtol=0, atol=4e-6 * max(1.0, float(b.detach().abs().max())))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("patch", [8, 16])
@pytest.mark.parametrize("keep", ["all", "random", "none"])
def test_tokenize_fp16(tokenize_case, dtype, patch, keep):
    """16 bits: a patch of 16 px is standardized once, in four parts."""
    case = tokenize_case(dtype, patch, keep)
    truth = tokens_and_gradients(case, "reference", torch.float64)[0].detach()
    got = tokens_and_gradients(case, "triton", torch.float16)[0].detach().double()
    # Weights and standardized pixels rounded to 11 bits: 2^-12 * sqrt(2 * 256) * 0.3, and the token itself.
    assert (got - truth).abs().max() < 4 * (2**-12 * 16 * 1.4 * 0.3) + 2**-11 * truth.abs().max()


TILES = {
    "whole": Tile(16, 32, 256, 1, 1),
    "two parts": Tile(32, 16, 128, 1, 1),
    "four parts": Tile(16, 64, 64, 1, 1),
    "blocks of 32": Tile(32, 32, 32, 1, 1, once=False),
    "blocks of 16, more rows than tokens": Tile(64, 64, 16, 1, 1, once=False),
}


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_tiling_gives_the_same_tokens(tokenize_case, monkeypatch, tile, dtype):
    """fp32 against fp64: forward and gradients, ragged, with any way to cut a patch of 256 pixels."""
    case = tokenize_case(dtype, 16, width=37)
    forward = {(4, stored): TILES[tile] for stored in (1, 2, 4)}
    gradient = {4: Tile(16, 16, min(64, TILES[tile].pixels), 1, 1)}
    config = replace(CONFIGS["interpreter"], forward=forward, gradient=gradient, splits=3)
    monkeypatch.setitem(CONFIGS, "interpreter", config)
    truth = tokens_and_gradients(case, "reference", torch.float64)
    got = tokens_and_gradients(case, "triton", torch.float32)
    for a, b in zip(got, truth, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=4e-6 * max(1.0, float(b.detach().abs().max())))


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=4),
    st.integers(1, 70),
    st.integers(0, 2**31),
)
def test_tokenize_random_shapes(planes_per_sample, width, seed):
    """Any mixture of channel counts, samples without a plane or without a visible patch, any width."""
    g = torch.Generator().manual_seed(seed)
    counts = torch.tensor(planes_per_sample)
    sample_K = torch.repeat_interleave(torch.arange(len(counts)), counts)
    planes_KHW = torch.randint(0, 256, (len(sample_K), 8, 24), generator=g).to(torch.uint8)
    total = len(sample_K) * 3
    keep = (
        torch.randperm(total, generator=g)[: int(torch.randint(0, total + 1, (), generator=g))].sort().values
    )
    sizes = ((width, 64), (width,), (3, width), (width,))
    parameters = [torch.randn(s, generator=g, dtype=torch.float64) * 0.3 for s in sizes]
    options = {"eps": 1e-3, "n_samples": len(counts)}
    truth = tokenize(planes_KHW, sample_K, keep, *parameters, **options, backend="reference")
    got = tokenize(planes_KHW, sample_K, keep, *(p.float() for p in parameters), **options, backend="triton")
    torch.testing.assert_close(got.double(), truth, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(37, 41), (36, 41), (1, 1), (2, 2), (64, 64)])
def test_statistics(dtype, shape):
    """Planes whose pixels no block or word divides; mean 60,000 with std 5 and a dead first pixel in 16 bits."""
    g = torch.Generator().manual_seed(0)
    high, spread = (200, 20) if dtype == torch.uint8 else (60_000, 5)
    x = (
        (high + spread * torch.randn(4, *shape, generator=g, dtype=torch.float64))
        .round()
        .clamp(0, 255 if high == 200 else 65535)
    )
    x[1, 0, 0] = 0
    x[2] = 255 if high == 200 else 65535
    mean_K, var_K = plane_statistics(x.to(torch.float32).to(dtype), backend="triton")
    torch.testing.assert_close(mean_K, x.mean((1, 2)), rtol=1e-14, atol=0)
    # The largest square is 60,000^2, its share of the variance the same: L * 1e-16 at worst.
    torch.testing.assert_close(var_K, x.var((1, 2), correction=0), rtol=2e-12, atol=0)


def test_statistics_refuse_planes_beyond_their_exact_sums():
    """2^16 pixels of a lane, 512 lanes in the interpreter's configuration; no memory behind the plane."""
    plane = torch.zeros(1, dtype=torch.uint16).expand(1, 2**13, 2**12)
    with pytest.raises(CamaeError, match="planes of 33554432 pixels exceed its exact sums"):
        tokenize_triton.plane_statistics(plane)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("patch", [8, 16])
@pytest.mark.parametrize("M", [1, 16, 21])
def test_reconstruction_loss(loss_case, dtype, patch, M):
    case = loss_case(dtype, patch, M)
    case.pred_MP2[0] = 0  # a silent patch: gradient of its Fourier part is 0

    def losses_and_gradient(backend, working):
        pred = case.pred_MP2.to(working, copy=True).requires_grad_()
        losses = reconstruction_losses(
            pred,
            case.planes_KHW,
            case.plane_M,
            case.patch_M,
            0.3,
            eps=case.eps,
            weight_M=case.weight_M,
            backend=backend,
        )
        (2 * losses[0]).backward()
        return torch.stack([x.detach().double() for x in losses]), pred.grad.double()

    truth, truth_grad = losses_and_gradient("reference", torch.float64)
    got, got_grad = losses_and_gradient("triton", torch.float32)
    torch.testing.assert_close(got, truth, rtol=2e-6, atol=0)
    # A frequency with |F| = |F'| within fp32's 1e-6 may flip its sign, one of 256 in the gradient's sum.
    assert (got_grad - truth_grad).norm() < 1e-5 * truth_grad.norm()


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 0.99), st.integers(1, 40))
def test_reconstruction_loss_random(seed, alpha, M):
    g = torch.Generator().manual_seed(seed)
    planes_KHW = torch.randint(0, 256, (3, 24, 16), generator=g).to(torch.uint8)
    plane_M, patch_M = (torch.randint(0, n, (M,), generator=g) for n in (3, 6))
    pred = torch.randn(M, 64, generator=g, dtype=torch.float64)
    truth = reconstruction_losses(pred, planes_KHW, plane_M, patch_M, alpha, backend="reference")
    got = reconstruction_losses(pred.float(), planes_KHW, plane_M, patch_M, alpha, backend="triton")
    torch.testing.assert_close(torch.stack(got).double(), torch.stack(truth), rtol=3e-6, atol=0)


def test_loss_kernel_has_two_patch_sizes(loss_case):
    case = loss_case(torch.uint8, 4)
    with pytest.raises(CamaeError, match="8 and 16 px, not 4"):
        reconstruction_losses(
            case.pred_MP2, case.planes_KHW, case.plane_M, case.patch_M, 0.1, backend="triton"
        )


def attention_and_gradients(lengths_q, lengths_k, d, backend, dtype, seed=0, scale=None):
    g = torch.Generator().manual_seed(seed)
    T, S = sum(lengths_q), sum(lengths_k)
    # q, k and v as a fused projection leaves them: slices of one row, not contiguous.
    fused_q = torch.randn(T, 2 * d + 8, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    fused_kv = torch.randn(S, 4 * d, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    q = fused_q[:, : 2 * d].unflatten(1, (2, d))
    k, v = (x.unflatten(1, (2, d)) for x in fused_kv.chunk(2, dim=1))
    cu_q, cu_k = (torch.tensor([0, *n]).cumsum(0).to(torch.int32) for n in (lengths_q, lengths_k))
    out = varlen_attention(q, k, v, cu_q, cu_k, backend=backend, scale=scale)
    slope = torch.randn(out.shape, generator=g, dtype=torch.float64).to(dtype)
    return [
        x.double()
        for x in (out, *torch.autograd.grad((out * slope).sum(), (fused_q, fused_kv), materialize_grads=True))
    ]


SEQUENCES = [
    ((33, 5, 0, 64, 1), (33, 5, 0, 64, 1)),
    ((5, 0, 17, 40), (20, 7, 0, 33)),
    ((16, 16), (48, 48)),
    ((0, 0), (3, 0)),
    ((1,), (1,)),
]


@pytest.mark.parametrize("backend", ["triton", "triton_atomic"])
@pytest.mark.parametrize("d", [16, 32, 64, 128])
@pytest.mark.parametrize(("lengths_q", "lengths_k"), SEQUENCES)
def test_attention(d, lengths_q, lengths_k, backend):
    """Self- and cross-attention, lengths that no tile divides, empty queries, empty keys."""
    truth = attention_and_gradients(lengths_q, lengths_k, d, "reference", torch.float64)
    got = attention_and_gradients(lengths_q, lengths_k, d, backend, torch.float32)
    for a, b in zip(got, truth, strict=True):
        # fp32: scores of order 5 rounded at 6e-8 move exp by 3e-7; sums of at most 128 terms of order 1.
        torch.testing.assert_close(a, b, rtol=0, atol=5e-6)


def test_attention_fp16_is_as_good_as_torch():
    lengths = (33, 5, 20)
    truth = attention_and_gradients(lengths, lengths, 32, "reference", torch.float64)
    torch_low = attention_and_gradients(lengths, lengths, 32, "reference", torch.float16)
    got = attention_and_gradients(lengths, lengths, 32, "triton", torch.float16)
    for a, low, exact in zip(got, torch_low, truth, strict=True):
        # Self-calibrated: twice torch's own error in fp16, plus one rounding of the inputs' size.
        assert (a - exact).abs().max() <= 2 * (low - exact).abs().max() + 2**-10


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=4), st.integers(0, 99)
)
def test_attention_random_shapes(pairs, seed):
    lengths = [p[0] for p in pairs], [p[1] for p in pairs]
    truth = attention_and_gradients(*lengths, 16, "reference", torch.float64, seed, 0.7)
    got = attention_and_gradients(*lengths, 16, "triton", torch.float32, seed, 0.7)
    for a, b in zip(got, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


def test_a_backward_pass_with_atomics_is_not_called_deterministic():
    q = torch.randn(3, 2, 16)
    cu = torch.tensor([0, 3], dtype=torch.int32)
    with pytest.raises(CamaeError, match="in no fixed order; ask for backend='triton' with deterministic"):
        varlen_attention(q, q, q, cu, cu, backend="triton_atomic", deterministic=True)


def test_attention_backward_is_deterministic():
    first = attention_and_gradients((33, 20), (33, 20), 16, "triton", torch.float32)
    second = attention_and_gradients((33, 20), (33, 20), 16, "triton", torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_attention_kernel_needs_a_positive_scale():
    with pytest.raises(CamaeError, match="needs scale > 0, not -1"):
        attention_and_gradients((3,), (3,), 16, "triton", torch.float32, scale=-1.0)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_lion_on_addresses_that_are_not_aligned(clip_norm):
    """Parameters that are views of one buffer, an element off: the same step, without wide loads."""

    def train(backend):
        g = torch.Generator().manual_seed(0)
        buffer = torch.randn(2 * 2048 + 40, generator=g)
        params = [torch.nn.Parameter(part) for part in (buffer[1:4000], buffer[4001:])]
        optimizer = Lion(params, lr=1e-3, clip_norm=clip_norm, backend=backend)
        for _ in range(2):
            for p in params:
                p.grad = torch.randn(p.shape, generator=g)
            optimizer.step()
        return params

    for p, q in zip(train("triton"), train("reference"), strict=True):
        torch.testing.assert_close(p, q, rtol=3e-7, atol=5e-7)


def test_lion_skips_a_step_whose_norm_is_not_a_number():
    param = torch.nn.Parameter(torch.ones(3000))
    optimizer = Lion([param], lr=1e-3, clip_norm=1.0, backend="triton")
    param.grad = torch.full((3000,), float("nan"))
    optimizer.step()
    assert torch.equal(param.detach(), torch.ones(3000))
    assert torch.isnan(optimizer.last_norm)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("clip_norm", [None, 5.0])
def test_lion(dtype, clip_norm):
    """Two groups, sizes over and under a chunk, an empty tensor; five steps."""

    def train(backend):
        g = torch.Generator().manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(n, generator=g).to(dtype)) for n in (5000, 7, 0, 2048, 300)]
        groups = [{"params": params[:2], "weight_decay": 0.1}, {"params": params[2:], "lr": 3e-3}]
        optimizer = Lion(groups, lr=1e-3, clip_norm=clip_norm, backend=backend)
        for _ in range(5):
            for p in params:
                p.grad = torch.randn(p.shape, generator=g).to(dtype)
            optimizer.step()
        for p in params:
            p.grad = torch.full_like(p, float("nan"))
        optimizer.found_inf = torch.ones(())  # this step changes nothing
        norm = optimizer.last_norm
        optimizer.step()
        optimizer.last_norm = norm
        return params, [optimizer.state[p] for p in params], optimizer.last_norm

    (params, states, norm), (plain, plain_states, plain_norm) = train("triton"), train("reference")
    for p, q, s, t in zip(params, plain, states, plain_states, strict=True):
        # The same formula in fp32; contraction of a product and a sum rounds once instead of twice.
        torch.testing.assert_close(p, q, rtol=3e-7 if dtype == torch.float32 else 0, atol=5e-7)
        torch.testing.assert_close(s["momentum"], t["momentum"], rtol=1e-5, atol=1e-7)
    if clip_norm is not None:
        torch.testing.assert_close(norm, plain_norm, rtol=1e-6, atol=0)
