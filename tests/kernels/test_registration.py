"""Registration of the ops with torch: opcheck, fake tensors on a CUDA device without one, compiled graphs."""

from __future__ import annotations

import importlib
import inspect

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

from camae.kernels import _dispatch
from camae.kernels.gelu_split.registration import gelu_columns_backward_op, gelu_columns_op
from camae.kernels.lion import Lion
from camae.kernels.patches import plane_statistics_reference
from camae.kernels.reconstruction_loss import reconstruction_losses
from camae.kernels.reconstruction_loss.registration import reconstruction_loss_op
from camae.kernels.residual_norm.registration import residual_norm_backward_op, residual_norm_op
from camae.kernels.tokenize import tokenize
from camae.kernels.tokenize.registration import plane_statistics_op, tokenize_op, weight_gradient_op
from camae.kernels.varlen_attention.normed import normed_attention_backward_op, normed_attention_op
from camae.kernels.varlen_attention.registration import attention_backward_op, attention_op
from camae.model import CAMAE, Backends, preset
from camae.model.blocks import Sequences


def tokenize_arguments(case):
    return (
        case.planes_KHW,
        case.sample_K,
        case.keep_index,
        *(p.requires_grad_() for p in case.parameters),
        *plane_statistics_reference(case.planes_KHW),
        case.eps,
        case.n_samples,
    )


def loss_arguments(case):
    indices = (case.plane_M, case.patch_M, case.weight_M)
    return (
        case.pred_MP2,
        case.planes_KHW,
        *indices,
        *plane_statistics_reference(case.planes_KHW),
        case.eps,
        0.3,
    )


def attention_arguments():
    lengths_q, lengths_k = torch.tensor([0, 5, 0, 7, 4]), torch.tensor([0, 6, 2, 0, 3])
    g = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(n, 2, 16, generator=g, dtype=torch.float64, requires_grad=True) for n in (16, 11, 11)
    )
    return q, k, v, lengths_q.cumsum(0).int(), lengths_k.cumsum(0).int(), 7, 6, 0.3, False


@pytest.mark.parametrize("keep", ["all", "random"])
def test_opcheck_tokenize(tokenize_case, keep):
    case = tokenize_case(torch.uint16, 8, keep, width=12)
    opcheck(tokenize_op.library_op, tokenize_arguments(case))
    opcheck(plane_statistics_op.library_op, (case.planes_KHW,))


LAUNCHERS = [
    (plane_statistics_op, "tokenize", "plane_statistics"),
    (tokenize_op, "tokenize", "tokenize"),
    (weight_gradient_op, "tokenize", "weight_gradient"),
    (reconstruction_loss_op, "reconstruction_loss", "reconstruction_loss"),
    (residual_norm_op, "residual_norm", "residual_norm"),
    (residual_norm_backward_op, "residual_norm", "residual_norm_backward"),
    (gelu_columns_op, "gelu_split", "forward"),
    (gelu_columns_backward_op, "gelu_split", "backward"),
    (attention_op, "varlen_attention", "attention"),
    (attention_backward_op, "varlen_attention", "attention_backward"),
    (normed_attention_op, "varlen_attention", "normed_attention"),
    (normed_attention_backward_op, "varlen_attention", "normed_attention_backward"),
]


@pytest.mark.parametrize(
    ("op", "module", "launcher"), LAUNCHERS, ids=lambda x: x if isinstance(x, str) else ""
)
def test_a_triton_launcher_is_the_kernel_on_cuda(op, module, launcher):
    """Registered for CUDA tensors, with the op's own signature; on CPU tensors the op runs its formula."""
    pytest.importorskip("triton", reason="the kernels need triton, which is installed on Linux only")
    schema = op.library_op._opoverload._schema
    assert torch._C._dispatch_has_kernel_for_dispatch_key(schema.name, "CUDA")
    assert not torch._C._dispatch_has_kernel_for_dispatch_key(schema.name, "CPU")
    function = getattr(importlib.import_module(f"camae.kernels.{module}.triton"), launcher)
    assert list(inspect.signature(function).parameters) == [a.name for a in schema.arguments]


def test_opcheck_loss(loss_case):
    case = loss_case(torch.uint8, 8)
    case.pred_MP2.requires_grad_()
    opcheck(reconstruction_loss_op.library_op, loss_arguments(case))


def test_opcheck_attention():
    opcheck(attention_op.library_op, attention_arguments())


def test_gradcheck_of_every_backward(tokenize_case, loss_case):
    """The registered backward passes themselves (their plain-torch form on CPU), not autograd through torch."""
    case = tokenize_case(torch.uint8, 8, width=3)
    arguments = tokenize_arguments(case)
    assert torch.autograd.gradcheck(
        lambda *p: tokenize_op(*arguments[:3], *p, *arguments[7:]), arguments[3:7]
    )
    pred, *rest = loss_arguments(loss_case(torch.uint8, 8, M=3))
    assert torch.autograd.gradcheck(lambda p: reconstruction_loss_op(p, *rest)[0], (pred.requires_grad_(),))
    q, k, v, *rest = attention_arguments()
    assert torch.autograd.gradcheck(lambda *x: attention_op(*x, *rest)[0], (q, k, v))


def test_compiled_graph_is_whole_and_equal(loss_case):
    """torch.compile with fullgraph (Inductor's back-end needs a C++ compiler; aot_eager shows the graph)."""
    arguments = loss_arguments(loss_case(torch.uint8, 8))
    compiled = torch.compile(lambda *x: reconstruction_loss_op(*x), backend="aot_eager", fullgraph=True)
    for a, b in zip(compiled(*arguments), reconstruction_loss_op(*arguments), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def on_fake(model: torch.nn.Module, device: str, dtype: torch.dtype) -> None:
    """The model with fake parameters and buffers on `device`; call inside a FakeTensorMode."""
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = torch.nn.Parameter(
                    torch.empty(p.shape, dtype=dtype, device=device)
                )
        for name, b in module._buffers.items():
            module._buffers[name] = torch.empty(b.shape, dtype=b.dtype, device=device)


def losses_on_fakes(model: CAMAE, device: str) -> tuple[torch.Tensor, ...]:
    """Tokenizer, encoder blocks, a decoder stack, head and loss with the kernels, in bf16 (by autocast on the CPU).

    The layout's indices are given: what depends on data cannot be computed on fakes.
    """
    encoder, decoder, kept, masked = model.encoder, model.decoder, (16, 8), (48, 24)

    def integers(n, dtype=torch.int64):
        return torch.empty(n, dtype=dtype, device=device)

    planes_KHW, index_M = integers((6, 64, 64), torch.uint8), integers(sum(masked))
    parameters = (encoder.patch_weight_DP2, encoder.patch_bias_D, encoder.positions_ND, encoder.cls_D)
    with torch.autocast("cpu", torch.bfloat16):
        tokens_TD = tokenize(
            planes_KHW, integers(6), integers(sum(kept)), *parameters, eps=1e-3, n_samples=2, backend="triton"
        )
        assert tokens_TD.shape == (sum(kept) + 2, 384)
        assert (tokens_TD.device.type, tokens_TD.dtype) == (device, torch.bfloat16)
        lengths = (kept[0] + 1, kept[1] + 1)
        for block in encoder.blocks:
            tokens_TD = block(tokens_TD, Sequences(integers(3, torch.int32), lengths))
        features_LD = decoder.project(torch.narrow(torch.cat([tokens_TD] * 3), 0, 0, sum(masked)))
        for block in decoder.stacks[0]:
            features_LD = block(features_LD, Sequences(integers(3, torch.int32), masked))
        pred_MP2 = decoder.heads[0](features_LD)
        assert pred_MP2.dtype == torch.bfloat16
    return reconstruction_losses(pred_MP2, planes_KHW, index_M, index_M, 0.01, backend="triton")


@pytest.fixture
def small_model(monkeypatch):
    """A model on the kernels, whose back-end may be named although no device can run it here."""
    monkeypatch.setattr(
        _dispatch,
        "choose",
        lambda op, requested, device, *_, **__: requested or _dispatch.default_backend(op, device),
    )
    changes = {"crop": 64, "channels": ("a", "b"), "decoder": "small", "depth": 2}
    return CAMAE(preset("ca_mae_vit_s16", **changes), Backends("triton", "triton", "triton"))


def test_training_step_on_fakes(small_model):
    """Forward, backward and optimizer: torch checks shape, dtype and device of every op and every gradient."""
    with FakeTensorMode():
        on_fake(small_model, "cpu", torch.float32)
        losses = losses_on_fakes(small_model, "cpu")
        losses[0].backward()
        Lion(small_model.parameters(), clip_norm=1.0, backend="reference").step()
    assert all(x.shape == () and x.dtype == torch.float32 for x in losses)
    for name in ("encoder.patch_weight_DP2", "encoder.cls_D", "encoder.blocks.0.in_proj.weight"):
        parameter = small_model.get_parameter(name)
        assert parameter.grad is not None, name
        assert parameter.grad.shape == parameter.shape


def test_kernels_on_fake_cuda_tensors(small_model):
    """The same on CUDA fakes. Builds of torch without CUDA cannot record autograd there (they have no device
    guard), so the backward ops are called one by one."""
    with FakeTensorMode(), torch.no_grad():
        on_fake(small_model, "cuda", torch.bfloat16)
        losses = losses_on_fakes(small_model, "cuda")
        case = {"device": "cuda", "dtype": torch.bfloat16}
        q, kv, cu = (
            torch.empty(9, 2, 64, **case),
            torch.empty(7, 2, 64, **case),
            torch.empty(3, device="cuda"),
        )
        cu = cu.to(torch.int32)
        out, lse = attention_op(q, kv, kv, cu, cu, 5, 4, 0.1, False)
        grads = attention_backward_op(q, q, kv, kv, out, lse, cu, cu, 5, 4, 0.1, False)
        planes = torch.empty(6, 64, 64, dtype=torch.uint8, device="cuda")
        index, statistics = torch.empty(6, dtype=torch.int64, device="cuda"), torch.empty(6, device="cuda")
        weight, bias = weight_gradient_op(
            planes, index, None, q.reshape(18, 64), statistics, statistics, 1e-3, 16, 16
        )
    assert all(x.device.type == "cuda" and x.dtype == torch.float32 for x in losses)
    assert [g.shape for g in grads] == [q.shape, kv.shape, kv.shape]
    assert {g.dtype for g in grads} == {torch.bfloat16}
    assert lse.shape == (2, 9)
    assert (weight.shape, bias.shape, weight.dtype) == ((64, 256), (64,), torch.float32)
