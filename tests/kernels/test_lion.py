"""Lion against its algorithm, step by step."""

from __future__ import annotations

import pytest
import torch

from camae.errors import MissingBackendError
from camae.kernels.lion import Lion, backends, lion_reference


def parameters(dtype, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [
        torch.nn.Parameter(torch.randn(s, generator=g, dtype=torch.float64).to(dtype))
        for s in ((7, 5), (3,), ())
    ]


def set_gradients(params, step):
    g = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=g, dtype=torch.float64).to(p.dtype)


def test_equals_algorithm_step_by_step():
    params = parameters(torch.float64)
    plain = [p.detach().clone() for p in params]
    momenta = [torch.zeros_like(p) for p in plain]
    groups = [{"params": params[:1], "weight_decay": 0.1}, {"params": params[1:], "lr": 3e-3}]
    optimizer = Lion(groups, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.05)
    for step in range(10):
        set_gradients(params, step)
        for i, (p, m) in enumerate(zip(plain, momenta, strict=True)):
            lr, decay = (1e-2, 0.1) if i == 0 else (3e-3, 0.05)
            lion_reference(p, params[i].grad, m, lr=lr, beta1=0.9, beta2=0.95, weight_decay=decay)
        optimizer.step()
        for p, q in zip(params, plain, strict=True):
            torch.testing.assert_close(p.detach(), q, rtol=1e-13, atol=1e-15)


def test_clipping_equals_torch():
    """The clipped step is the step on gradients that torch.nn.utils.clip_grad_norm_ has scaled."""
    clipped, plain = parameters(torch.float64), parameters(torch.float64)
    fused = Lion(clipped, lr=1e-2, clip_norm=0.5)
    apart = Lion(plain, lr=1e-2)
    for step in range(4):
        set_gradients(clipped, step)
        set_gradients(plain, step)
        norm = torch.nn.utils.clip_grad_norm_(plain, 0.5)
        fused.step()
        apart.step()
        torch.testing.assert_close(fused.last_norm, norm, rtol=1e-12, atol=0)
        for p, q in zip(clipped, plain, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-13, atol=1e-15)
            # The momentum, unlike the sign, sees the size of the gradient.
            a, b = fused.state[p]["momentum"], apart.state[q]["momentum"]
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-15)


def test_low_precision_parameters_follow_their_fp32_masters():
    """bf16 cannot hold lr = 1e-4 beside weights of 1: without a master nothing would move."""
    low = [torch.nn.Parameter(torch.ones(50, dtype=torch.bfloat16))]
    optimizer = Lion(low, lr=1e-4, weight_decay=0.0)
    for _ in range(100):
        low[0].grad = torch.ones_like(low[0])
        optimizer.step()
    assert optimizer.state[low[0]]["master"].dtype == torch.float32
    # 100 steps of 1e-4 down from 1; the copy is the master rounded to bf16 (2^-9 relative).
    torch.testing.assert_close(optimizer.state[low[0]]["master"], torch.full((50,), 0.99), rtol=0, atol=1e-5)
    torch.testing.assert_close(low[0].detach().float(), torch.full((50,), 0.99), rtol=2**-8, atol=0)


def test_state_survives_a_checkpoint():
    params, copies = parameters(torch.bfloat16), parameters(torch.bfloat16)
    first, second = Lion(params, lr=1e-2), Lion(copies, lr=1e-2)
    for step in range(3):
        set_gradients(params, step)
        first.step()
    for p, q in zip(params, copies, strict=True):
        q.data.copy_(p.data)
    second.load_state_dict(first.state_dict())
    for p, q in zip(params, copies, strict=True):
        assert second.state[q]["master"].dtype == torch.float32
        assert torch.equal(first.state[p]["master"], second.state[q]["master"])
    for step in (3, 4):
        set_gradients(params, step)
        set_gradients(copies, step)
        first.step()
        second.step()
    for p, q in zip(params, copies, strict=True):
        assert torch.equal(p, q)


def test_a_parameter_without_gradient_stays():
    params = parameters(torch.float32)
    before = params[0].detach().clone()
    set_gradients(params[1:], 0)
    Lion(params, lr=1.0, clip_norm=1.0).step()
    assert torch.equal(params[0].detach(), before)


def test_missing_backend_is_named():
    params = parameters(torch.float32)
    set_gradients(params, 0)
    if not backends("cpu")[0].usable:
        with pytest.raises(MissingBackendError, match="lion: back-end 'triton'"):
            Lion(params, backend="triton").step()


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_flagged_step_changes_nothing(clip_norm):
    """found_inf = 1 with gradients that are no numbers: parameters and momenta keep every bit."""
    params = parameters(torch.float32)
    optimizer = Lion(params, clip_norm=clip_norm)
    for step, flag in enumerate((0.0, 1.0, 0.0)):
        set_gradients(params, step)
        if flag:
            params[0].grad[0, 0] = float("nan")
        optimizer.found_inf = torch.tensor(flag)
        before = [p.detach().clone() for p in params]
        momenta = [s["momentum"].clone() for s in optimizer.state.values()]
        optimizer.step()
        assert all(torch.equal(p, b) == bool(flag) for p, b in zip(params, before, strict=True))
        if flag:
            kept = [s["momentum"] for s in optimizer.state.values()]
            assert all(torch.equal(m, k) for m, k in zip(momenta, kept, strict=True))
