"""native_attention: attention within the sequences of a packed batch on a CPU, float32, forward and backward.

The `native` back-end of `varlen_attention`: csrc/attention_kernel.h and attention_gradient.h, compiled for AVX-512 and
for AVX2; in the forward pass alone the LayerNorm of q and k over the head dim can be inside. A sequence's numbers do
not depend on what else is in the batch nor on the number of threads.
"""

from __future__ import annotations

from typing import Any

import torch

from camae.kernels._cpu import Norm, arrays, bounds, instructions, module, stacked


@torch.library.custom_op("camae::native_attention", mutates_args=())
def native_attention_op(
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    scale: float,
    q_norm_2d: torch.Tensor | None,
    k_norm_2d: torch.Tensor | None,
    eps: float,
    instruction_set: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(LN(q) LN(k)^T * scale) v, (T, H, d), and log2 of the denominators (H, T); norms as (2, d)."""
    T, H, d = q_THd.shape
    out_THd, sums_HT = q_THd.new_empty(T, H, d), q_THd.new_empty(H, T)
    norms = (None if x is None else x.numpy() for x in (q_norm_2d, k_norm_2d))
    module("attention").attention(
        *arrays(q_THd, k_SHd, v_SHd, out_THd, sums_HT),
        *bounds(cu_q, cu_k),
        scale,
        *norms,
        eps,
        torch.get_num_threads(),
        instruction_set,
    )
    return out_THd, sums_HT


@native_attention_op.register_fake
def _(
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    scale: float,
    q_norm_2d: torch.Tensor | None,
    k_norm_2d: torch.Tensor | None,
    eps: float,
    instruction_set: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    T, H, d = q_THd.shape
    return q_THd.new_empty(T, H, d), q_THd.new_empty(H, T)


@torch.library.custom_op("camae::native_attention_backward", mutates_args=())
def native_attention_backward_op(
    grad_THd: torch.Tensor,
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    out_THd: torch.Tensor,
    sums_HT: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    scale: float,
    instruction_set: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dq, dk, dv = (x.new_empty(x.shape) for x in (q_THd, k_SHd, v_SHd))
    module("attention").attention_backward(
        *arrays(grad_THd, q_THd, k_SHd, v_SHd, out_THd, sums_HT, dq, dk, dv),
        *bounds(cu_q, cu_k),
        scale,
        torch.get_num_threads(),
        instruction_set,
    )
    return dq, dk, dv


@native_attention_backward_op.register_fake
def _(
    grad_THd: torch.Tensor,
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    out_THd: torch.Tensor,
    sums_HT: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    scale: float,
    instruction_set: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return q_THd.new_empty(q_THd.shape), k_SHd.new_empty(k_SHd.shape), v_SHd.new_empty(v_SHd.shape)


class _Attention(torch.autograd.Function):
    """The op with its gradient. A Function, because register_autograd costs three times as much a call."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> torch.Tensor:
        out_THd, sums_HT = native_attention_op(*inputs)
        q_THd, k_SHd, v_SHd, cu_q, cu_k, ctx.scale, *_, ctx.instruction_set = inputs
        ctx.save_for_backward(q_THd, k_SHd, v_SHd, out_THd, sums_HT, cu_q, cu_k)
        return out_THd

    @staticmethod
    def backward(ctx: Any, grad_THd: torch.Tensor) -> Any:  # type: ignore[override]
        gradients = native_attention_backward_op(grad_THd, *ctx.saved_tensors, ctx.scale, ctx.instruction_set)
        return *gradients, *[None] * 7


def native_attention(
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    scale: float,
    q_norm: Norm | None = None,
    k_norm: Norm | None = None,
    eps: float = 1e-6,
) -> torch.Tensor:
    """The op with the best instruction set of this processor; arguments as in `varlen_attention`.

    Differentiable in q, k and v; with norms no gradient may be asked.
    """
    norms = stacked(q_norm), stacked(k_norm)
    return _Attention.apply(q_THd, k_SHd, v_SHd, cu_q, cu_k, scale, *norms, eps, instructions()[0])
