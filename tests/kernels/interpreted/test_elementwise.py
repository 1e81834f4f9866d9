"""The elementwise kernels of a block against plain torch in fp64, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from camae.kernels.gelu_split import gelu_split
from camae.kernels.residual_norm import residual_norm
from camae.kernels.varlen_attention import varlen_attention

# What is given: (update, gamma, stochastic depth, norm).
PARTS = {
    "norm": (False, False, False, True),
    "residual": (True, True, True, False),
    "plain residual + norm": (True, False, False, True),
    "all": (True, True, True, True),
}


def norm_inputs(T, D, parts, seed=0):
    update, gamma, depth, norm = parts
    g = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(size, generator=g, dtype=torch.float64)

    factor = torch.tensor([0.0, 1.25, 2.0], dtype=torch.float64)
    segment = torch.randint(0, 3, (T,), generator=g).sort().values
    tensors = [2 * normal(T, D) + 3, normal(T, D), normal(D), normal(D), normal(D)]
    wanted = (True, update, gamma, norm, norm)
    return [t if w else None for t, w in zip(tensors, wanted, strict=True)], (
        (factor, segment) if depth else (None, None)
    )


def norm_and_gradients(T, D, parts, backend, dtype, seed=0):
    tensors, (factor, segment) = norm_inputs(T, D, parts, seed)
    x, update, gamma, weight, bias = (None if t is None else t.to(dtype).requires_grad_() for t in tensors)
    factor = None if factor is None else factor.to(dtype)
    y, normed = residual_norm(x, update, gamma, factor, segment, weight, bias, eps=1e-5, backend=backend)
    outputs = [o for o in (None if update is None else y, normed) if o is not None]
    g = torch.Generator().manual_seed(seed + 1)
    loss = sum((o * torch.randn(o.shape, generator=g, dtype=torch.float64).to(dtype)).sum() for o in outputs)
    inputs = [t for t in (x, update, gamma, weight, bias) if t is not None]
    return [o.detach().double() for o in (*outputs, *torch.autograd.grad(loss, inputs))]


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize(("T", "D"), [(13, 40), (1, 64), (7, 96)])
def test_residual_norm(parts, T, D):
    """Rows that no tile divides, widths that are no power of two, every combination a block uses."""
    truth = norm_and_gradients(T, D, PARTS[parts], "reference", torch.float64)
    got = norm_and_gradients(T, D, PARTS[parts], "triton", torch.float32)
    for a, b in zip(got, truth, strict=True):
        # fp32: values of order 5, rows of 96 with spread 2: 8 roundings of 6e-8 each, times 4.
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6 * max(5.0, float(b.abs().max())))


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(sorted(PARTS)), st.integers(0, 20), st.integers(2, 70), st.integers(0, 99))
def test_residual_norm_random_shapes(parts, T, D, seed):
    truth = norm_and_gradients(T, D, PARTS[parts], "reference", torch.float64, seed)
    got = norm_and_gradients(T, D, PARTS[parts], "triton", torch.float32, seed)
    for a, b in zip(got, truth, strict=True):
        # As above; two features may lie within 1e-2 of each other, which the norm blows up by 1e2 * spread.
        scale = max(5.0, float(b.abs().max())) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=0, atol=(1e-3 if D < 8 else 2e-6) * scale)


def test_residual_norm_mixed_precision():
    """fp32 stream, fp16 update and norm, as under autocast: outputs' dtypes, and fp16's own rounding."""
    (x, update, gamma, weight, bias), (factor, segment) = norm_inputs(9, 48, PARTS["all"])
    truth = residual_norm(x, update, gamma, factor, segment, weight, bias, backend="reference")
    with torch.autocast("cpu", torch.float16):
        y, normed = residual_norm(
            x.float(),
            update.half(),
            *(t.float() for t in (gamma, factor)),
            segment,
            weight.float(),
            bias.float(),
            backend="triton",
        )
    assert (y.dtype, normed.dtype) == (torch.float32, torch.float16)
    # The update is rounded to 11 bits: 2^-12 of its 3, times gamma * factor up to 6; normed to 11 bits of 8.
    assert (y.double() - truth[0]).abs().max() < 2**-12 * 3 * 6
    assert (normed.double() - truth[1]).abs().max() < 2**-12 * 3 * 6 * 3 + 2**-12 * 8


def gelu_and_gradients(T, widths, bias, backend, dtype, seed=0):
    g = torch.Generator().manual_seed(seed)
    fused = (2 * torch.randn(T, sum(widths), generator=g, dtype=torch.float64)).to(dtype).requires_grad_()
    b = torch.randn(widths[0], generator=g, dtype=torch.float64).to(dtype).requires_grad_() if bias else None
    outputs = gelu_split(fused, b, widths, backend=backend)
    loss = sum((o * torch.randn(o.shape, generator=g, dtype=torch.float64).to(dtype)).sum() for o in outputs)
    inputs = [t for t in (fused, b) if t is not None]
    return [o.detach().double() for o in (*outputs, *torch.autograd.grad(loss, inputs))]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("T", "widths"), [(21, (40, 8, 8, 8)), (1, (32,)), (16, (96, 5)), (0, (8, 4))])
def test_gelu_split(bias, T, widths):
    truth = gelu_and_gradients(T, widths, bias, "reference", torch.float64)
    got = gelu_and_gradients(T, widths, bias, "triton", torch.float32)
    for a, b in zip(got, truth, strict=True):
        # fp32: values up to 8, slopes up to 1.13; sums over at most 21 rows.
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_gelu_polynomial():
    """The distribution function within 2e-7 of fp64 (1.4e-7 with fused multiply-adds, which the interpreter lacks)."""
    x = torch.cat([torch.linspace(-8, 8, 20_476), torch.tensor([-1e4, -6.0, 6.0, 1e4])]).reshape(-1, 128)
    (got,) = gelu_split(x, None, (128,), backend="triton")
    exact = torch.nn.functional.gelu(x.double())
    allowed = 2e-7 * x.abs().double() + 2**-23 * exact.abs()
    assert ((got.double() - exact).abs() <= allowed).all()
    assert got.flatten()[-4:].tolist() == [0.0, 0.0, 6.0, 1e4]


def normed_attention(lengths_q, lengths_k, d, backend, dtype, seed=0, shift=0.0):
    g = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(size, generator=g, dtype=torch.float64)

    T, S = sum(lengths_q), sum(lengths_k)
    fused_q = (normal(T, 2 * d + 8) + shift).to(dtype).requires_grad_()
    fused_kv = (normal(S, 4 * d) + shift).to(dtype).requires_grad_()
    norms = [(1 + 0.3 * normal(d)).to(dtype).requires_grad_() for _ in range(4)]
    q = fused_q[:, : 2 * d].unflatten(1, (2, d))
    k, v = (x.unflatten(1, (2, d)) for x in fused_kv.chunk(2, dim=1))
    cu_q, cu_k = (torch.tensor([0, *n]).cumsum(0).to(torch.int32) for n in (lengths_q, lengths_k))
    out = varlen_attention(q, k, v, cu_q, cu_k, backend=backend, q_norm=norms[:2], k_norm=norms[2:])
    slope = normal(*out.shape).to(dtype)
    inputs = (fused_q, fused_kv, *norms)
    return [
        x.detach().double()
        for x in (out, *torch.autograd.grad((out * slope).sum(), inputs, materialize_grads=True))
    ]


SEQUENCES = [
    ((33, 5, 0, 40, 1), (33, 5, 0, 40, 1)),
    ((5, 0, 17, 40), (20, 7, 0, 33)),
    ((0, 0), (3, 0)),
]


@pytest.mark.parametrize("backend", ["triton", "triton_atomic"])
@pytest.mark.parametrize("d", [16, 64])
@pytest.mark.parametrize(("lengths_q", "lengths_k"), SEQUENCES)
def test_normed_attention(d, lengths_q, lengths_k, backend):
    """Norms of q and k inside the kernels: output, gradients of raw q, k, v and of the norms' parameters.

    The kernel says 0 for the bias of k; the reference finds rounding around 0, since it shifts all scores alike.
    """
    truth = normed_attention(lengths_q, lengths_k, d, "reference", torch.float64)
    got = normed_attention(lengths_q, lengths_k, d, backend, torch.float32)
    for a, b in zip(got, truth, strict=True):
        # fp32: scores of order 8 rounded at 6e-8 move exp by 5e-7; gradients of the norms add up to 80 rows.
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_normed_attention_away_from_zero():
    """q and k with a mean of three times their spread: the folded form loses as many digits as that."""
    truth = normed_attention((33, 20), (33, 20), 32, "reference", torch.float64, shift=3.0)
    got = normed_attention((33, 20), (33, 20), 32, "triton", torch.float32, shift=3.0)
    for a, b in zip(got, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=3e-5)


def test_normed_attention_fp16_is_as_good_as_torch():
    lengths = (33, 5, 20)
    truth = normed_attention(lengths, lengths, 32, "reference", torch.float64)
    torch_low = normed_attention(lengths, lengths, 32, "reference", torch.float16)
    got = normed_attention(lengths, lengths, 32, "triton", torch.float16)
    for a, low, exact in zip(got, torch_low, truth, strict=True):
        # Self-calibrated: twice torch's own error in fp16, plus one rounding of sums of that size.
        slack = 2**-10 * max(1.0, float(exact.abs().max()))
        assert (a - exact).abs().max() <= 2 * (low - exact).abs().max() + slack
