"""residual_norm, gelu_split and the linear layers that recompute them: gradients and registration."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from camae.errors import CamaeError
from camae.kernels import _dispatch
from camae.kernels.fused_linear import gelu_linear, norm_linear
from camae.kernels.gelu_split import gelu_split
from camae.kernels.gelu_split.registration import GeluSplit, gelu_columns_backward_op, gelu_columns_op
from camae.kernels.residual_norm import backends, residual_norm
from camae.kernels.residual_norm.registration import residual_norm_backward_op, residual_norm_op
from camae.kernels.varlen_attention.normed import normed_attention_op


def normal(*size, seed=0, dtype=torch.float64):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_()


T, D = 9, 12
SEGMENT = torch.tensor([0] * 4 + [1] * 2 + [2] * 3)
FACTOR = torch.tensor([0.0, 1.5, 2.0], dtype=torch.float64)


def parts(*wanted):
    """x, update, gamma, factor, segment, weight, bias; only those named."""
    every = {
        "x": normal(T, D),
        "update": normal(T, D, seed=1),
        "gamma": normal(D, seed=2),
        "factor": FACTOR,
        "segment": SEGMENT,
        "weight": normal(D, seed=3),
        "bias": normal(D, seed=4),
    }
    return [t if n == "x" or n in wanted else None for n, t in every.items()]


PARTS = {
    "norm": ("weight", "bias"),
    "residual": ("update", "gamma", "factor", "segment"),
    "plain": ("update", "weight", "bias"),
    "all": ("update", "gamma", "factor", "segment", "weight", "bias"),
}


def test_residual_norm_equals_the_definition():
    """Row by row: the residual with its factors, then (y - mean) / sqrt(var + eps) * weight + bias."""
    x, update, gamma, factor, segment, weight, bias = parts(*PARTS["all"])
    y, normed = residual_norm(x, update, gamma, factor, segment, weight, bias, eps=1e-3)
    for t in range(T):
        row = x[t] + factor[segment[t]] * gamma * update[t]
        torch.testing.assert_close(y[t], row, rtol=0, atol=1e-14)
        unit = (row - row.mean()) / (row.var(correction=0) + 1e-3).sqrt()
        torch.testing.assert_close(normed[t], unit * weight + bias, rtol=0, atol=1e-13)


@pytest.mark.parametrize("which", PARTS)
def test_residual_norm_registration(which):
    """opcheck, and gradcheck of the registered backward pass (its formulas on the CPU)."""
    arguments = parts(*PARTS[which])
    opcheck(residual_norm_op.library_op, (*arguments, 1e-6, torch.float64))
    inputs = [t for t in arguments if t is not None and t.requires_grad]

    def run(*values):
        left = iter(values)
        filled = [next(left) if t is not None and t.requires_grad else t for t in arguments]
        return tuple(o for o in residual_norm_op(*filled, 1e-6, torch.float64) if o.numel())

    assert torch.autograd.gradcheck(run, inputs)


def test_gelu_split_registration():
    fused, bias = normal(T, 20), normal(8, seed=1)
    opcheck(gelu_columns_op.library_op, (fused.detach(), bias.detach(), 8))
    buffers = torch.zeros(T, 20, dtype=torch.float64), torch.zeros(T, 8, dtype=torch.float64)
    grad = normal(T, 8, seed=2).detach()
    opcheck(gelu_columns_backward_op.library_op, (grad, fused.detach(), bias.detach(), *buffers))
    widths = (8, 4, 4, 4)
    assert torch.autograd.gradcheck(lambda f, b: GeluSplit.apply(f, b, widths), (fused, bias))
    act, *rest = gelu_split(fused, bias, widths)
    torch.testing.assert_close(act, F.gelu(fused[:, :8] + bias))
    assert all(torch.equal(a, fused[:, 8 + 4 * i : 12 + 4 * i]) for i, a in enumerate(rest))


def test_normed_attention_registration():
    cu_q, cu_k = (torch.tensor(n).cumsum(0).int() for n in ([0, 5, 0, 3], [0, 4, 2, 3]))
    tensors = [normal(n, 2, 4, seed=i) for i, n in enumerate((8, 9, 9))]
    norms = [normal(4, seed=3 + i) for i in range(4)]
    rest = (cu_q, cu_k, 5, 4, 0.4, 1e-6, False)
    opcheck(normed_attention_op.library_op, (*tensors, *norms, *rest))
    assert torch.autograd.gradcheck(lambda *x: normed_attention_op(*x, *rest)[0], (*tensors, *norms))


@pytest.fixture(params=["reference", "triton"])
def backend(request, monkeypatch):
    """Both forms of the functions; the kernels' one runs by their formulas here."""
    monkeypatch.setattr(_dispatch, "choose", lambda op, requested, device, *_: requested)
    return request.param


@pytest.mark.parametrize("save_activations", [True, False])
@pytest.mark.parametrize("which", ["norm", "plain", "all"])
def test_norm_linear_gradients(backend, save_activations, which):
    arguments = parts(*PARTS[which])
    product, bias = normal(5, D, seed=5), normal(5, seed=6)
    tensors = [t for t in arguments if t is not None and t.requires_grad]

    def run(*values):
        *values, w, b = values
        left = iter(values)
        x, update, gamma, factor, segment, weight, shift = (
            next(left) if t is not None and t.requires_grad else t for t in arguments
        )
        residual = {"update_TD": update, "gamma_D": gamma, "factor_B": factor, "segment_T": segment}
        options = {"save_activations": save_activations, "backend": backend}
        y, out = norm_linear(x, weight, shift, 1e-6, w, b, **residual, **options)
        return y * 1.0, out

    plain_y, plain_normed = residual_norm(*arguments, eps=1e-6, backend="reference")
    y, out = run(*tensors, product, bias)
    torch.testing.assert_close(y, plain_y, rtol=0, atol=1e-13)
    torch.testing.assert_close(out, F.linear(plain_normed, product, bias), rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(run, (*tensors, product, bias))


@pytest.mark.parametrize("save_activations", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_gelu_linear_gradients(backend, save_activations, biased):
    fused, weight, bias = normal(T, 14), normal(5, 8, seed=1), normal(5, seed=2)
    hidden = [normal(8, seed=3)] if biased else []

    def run(f, w, b, *h):
        options = {"save_activations": save_activations, "backend": backend}
        return gelu_linear(f, h[0] if h else None, (8, 4, 2), w, b, **options)

    out, *rest = run(fused, weight, bias, *hidden)
    expected = F.linear(F.gelu(fused[:, :8] + (hidden[0] if biased else 0)), weight, bias)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    assert [r.shape[1] for r in rest] == [4, 2]
    assert torch.autograd.gradcheck(run, (fused, weight, bias, *hidden))


def test_errors_name_the_problem():
    x = normal(4, 6)
    with pytest.raises(CamaeError, match="of equal shapes"):
        residual_norm(x, normal(4, 5))
    with pytest.raises(CamaeError, match="weight and bias together"):
        residual_norm(x, weight_D=normal(6))
    with pytest.raises(CamaeError, match="do not make up"):
        gelu_split(x, None, (4, 4))
    with pytest.raises(CamaeError, match="the bias has shape"):
        gelu_split(x, normal(5), (4, 2))
    if not backends("cpu")[0].usable:
        with pytest.raises(CamaeError, match="need a CUDA device"):
            residual_norm(x, weight_D=normal(6), bias_D=normal(6), backend="triton")


def test_on_fake_cuda_tensors():
    """Shapes, dtypes and device of every op of this file and its backward pass on CUDA, in bf16."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from camae.kernels.varlen_attention.normed import normed_attention_backward_op

    with FakeTensorMode(), torch.no_grad():
        low = {"device": "cuda", "dtype": torch.bfloat16}
        x, update = torch.empty(9, 64, device="cuda"), torch.empty(9, 64, **low)
        gamma, factor = torch.empty(64, device="cuda"), torch.empty(2, device="cuda")
        segment = torch.empty(9, dtype=torch.int64, device="cuda")
        residual = (update, gamma, factor, segment)
        y, normed = residual_norm_op(x, *residual, gamma, gamma, 1e-6, torch.bfloat16)
        dx, du, sums = residual_norm_backward_op(y, normed, y, *residual, gamma, 1e-6)
        fused = torch.empty(9, 160, **low)
        act = gelu_columns_op(fused, gamma, 64)
        grad = torch.empty(9, 160, **low)
        bias_grad = gelu_columns_backward_op(act, fused, gamma, grad, act)
        q, cu = torch.empty(9, 2, 32, **low), torch.empty(3, dtype=torch.int32, device="cuda")
        norms = [torch.empty(32, device="cuda")] * 4
        out, *kept = normed_attention_op(q, q, q, *norms, cu, cu, 5, 5, 0.1, 1e-6, False)
        grads = normed_attention_backward_op(out, q, q, q, *norms, out, *kept, cu, cu, 5, 5, 0.1, 1e-6, False)
    assert (y.dtype, normed.dtype, dx.dtype, du.dtype) == (torch.float32, torch.bfloat16) * 2
    assert (sums.shape, act.shape, bias_grad.shape) == ((3, 64), (9, 64), (64,))
    assert [g.shape for g in grads] == [q.shape] * 3 + [(3, 32)]
    tensors = (y, normed, dx, du, sums, act, bias_grad, out, *kept, *grads)
    assert {t.device.type for t in tensors} == {"cuda"}
