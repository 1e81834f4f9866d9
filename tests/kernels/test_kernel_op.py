"""Kernel ops: launched directly in eager mode, as library ops where something else looks on."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from camae.kernels import _kernel_op
from camae.kernels.gelu_split.registration import fused_gradient
from camae.kernels.residual_norm.registration import residual_norm_backward_op, residual_norm_op

pytest.importorskip("triton", reason="the kernels need triton, which is installed on Linux only")

from camae.kernels.varlen_attention.problem import shared_buffers


def arguments(requires_grad=False):
    g = torch.Generator().manual_seed(0)
    x, update = (torch.randn(5, 8, generator=g, dtype=torch.float64) for _ in range(2))
    weight, bias, gamma = (torch.randn(8, generator=g, dtype=torch.float64) for _ in range(3))
    tensors = [x, update, gamma, None, None, weight, bias]
    if requires_grad:
        tensors = [None if t is None else t.requires_grad_() for t in tensors]
    return (*tensors, 1e-6, torch.float64)


@pytest.fixture
def direct(monkeypatch):
    """As on a device with kernels; the launcher is the op's formula, and every call of it is counted."""
    calls = []

    def launch(*args):
        calls.append(args)
        return residual_norm_op.library_op._init_fn(*args)

    monkeypatch.setattr(_kernel_op, "interpreting", lambda: True)
    monkeypatch.setattr(residual_norm_op, "_launch", launch)
    function = _kernel_op._function(launch, *_gradient())
    monkeypatch.setattr(residual_norm_op, "_function", function)
    return calls


def _gradient():
    from camae.kernels.residual_norm import registration

    return registration._setup_context, registration._backward


def test_eager_calls_launch_and_have_the_gradient_of_the_library_op(direct, monkeypatch):
    inputs = arguments(requires_grad=True)
    leaves = [x for x in inputs if isinstance(x, torch.Tensor)]
    monkeypatch.setattr(residual_norm_backward_op, "_launch", residual_norm_backward_op.library_op._init_fn)
    ours = residual_norm_op(*inputs)
    assert len(direct) == 1
    theirs = residual_norm_op.library_op(*inputs)
    slopes = [torch.ones_like(x) for x in ours]
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
    got, expected = (torch.autograd.grad(outputs, leaves, slopes) for outputs in (ours, theirs))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_without_gradients_nothing_is_recorded(direct):
    with torch.no_grad():
        y, _ = residual_norm_op(*arguments(requires_grad=True))
    assert len(direct) == 1
    assert y.grad_fn is None


@pytest.mark.parametrize("watcher", ["fake tensors", "compiler", "vmap"])
def test_the_library_op_is_what_others_see(direct, watcher):
    if watcher == "fake tensors":
        with FakeTensorMode(allow_non_fake_inputs=True):
            residual_norm_op(*arguments())
    elif watcher == "compiler":
        torch.compile(lambda *x: residual_norm_op(*x), backend="aot_eager", fullgraph=True)(*arguments())
    else:
        x, *rest = arguments()
        batched = torch.func.vmap(lambda one: residual_norm_op(one, *rest)[0])(torch.stack([x, 2 * x]))
        assert torch.equal(batched[0], residual_norm_op.library_op(x, *rest)[0])
    assert direct == []


def test_an_op_without_a_gradient_says_so(direct):
    grad = torch.ones(5, 8, dtype=torch.float64, requires_grad=True)
    y = torch.ones(5, 8, dtype=torch.float64)
    dx, _, _ = residual_norm_backward_op(grad, grad, y, None, None, None, None, y[0], 1e-6)
    with pytest.raises((RuntimeError, NotImplementedError)):
        dx.sum().backward()


def columns_of(product, offsets, heads, d):
    return [product[:, c : c + heads * d].unflatten(1, (heads, d)) for c in offsets]


def test_gradients_of_a_products_columns_are_columns_of_one_buffer():
    """q, k and v of a fused projection (T, hidden + 3 D): no copy makes the product's gradient."""
    T, heads, d, hidden = 5, 2, 4, 16
    product = torch.randn(T, hidden + 3 * heads * d)
    offsets = [hidden + i * heads * d for i in range(3)]
    buffers = shared_buffers(*columns_of(product, offsets, heads, d))
    storage = buffers.grad_q.untyped_storage().data_ptr()
    assert [b.storage_offset() for b in buffers] == offsets
    assert all(b.untyped_storage().data_ptr() == storage and b.stride() == (40, 4, 1) for b in buffers)
    for i, buffer in enumerate(buffers):
        buffer.fill_(float(i))
    slope = torch.randn(T, hidden)
    rest = [b.flatten(1) for b in buffers]
    whole, _ = fused_gradient(slope, rest, product, None, (hidden, 8, 8, 8))
    assert whole.untyped_storage().data_ptr() == storage
    # The control: the same gradients from elsewhere are copied, and the result is the same.
    copied, _ = fused_gradient(slope, [r.clone() for r in rest], product, None, (hidden, 8, 8, 8))
    assert copied.untyped_storage().data_ptr() != storage
    torch.testing.assert_close(whole, copied, rtol=0, atol=0)


@pytest.mark.parametrize("case", ["three tensors", "part of a storage", "overlapping", "other lengths"])
def test_other_layouts_get_gradients_of_their_own(case):
    T, heads, d = 5, 2, 4
    product = torch.randn(T, 40)
    q, k, v = columns_of(product, (16, 24, 32), heads, d)
    if case == "three tensors":
        q, k, v = (x.clone() for x in (q, k, v))
    elif case == "part of a storage":
        q, k, v = columns_of(torch.randn(2 * T, 40)[:T], (16, 24, 32), heads, d)
    elif case == "overlapping":
        k = q
    else:
        k, v = k[:3], v[:3]
    for buffer, x in zip(shared_buffers(q, k, v), (q, k, v), strict=True):
        assert buffer.shape == x.shape
        assert buffer.is_contiguous()
