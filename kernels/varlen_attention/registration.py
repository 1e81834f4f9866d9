"""torch.library ops of `varlen_attention`: schema, formula, Triton kernel, fake and gradient.

atomic: whether the kernels of the backward pass add the gradient of q by atomics (5 products, no fixed order).
"""

from __future__ import annotations

import torch

from camae.kernels._autograd import Context, Gradients, Inputs
from camae.kernels._device import accumulation_dtype
from camae.kernels._kernel_op import KernelOp
from camae.kernels.varlen_attention.reference import attention_formulas

TRITON = "camae.kernels.varlen_attention.triton"


@torch.library.custom_op("camae::varlen_attention", mutates_args=())
def _attention(
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    atomic: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """out (T, H, d) and log2 of the softmax denominators (H, T)."""
    out_THd, lse_HT = attention_formulas(
        q_THd.contiguous(), k_SHd.contiguous(), v_SHd.contiguous(), cu_q, cu_k, scale
    )
    return out_THd, lse_HT.to(accumulation_dtype(q_THd))


@_attention.register_fake
def _(
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    atomic: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    T, H, d = q_THd.shape
    return q_THd.new_empty(T, H, d), q_THd.new_empty(H, T, dtype=accumulation_dtype(q_THd))


@torch.library.custom_op("camae::varlen_attention_backward", mutates_args=())
def _attention_backward(
    grad_THd: torch.Tensor,
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    out_THd: torch.Tensor,
    lse_HT: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    atomic: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v."""
    q_THd, k_SHd, v_SHd = q_THd.contiguous(), k_SHd.contiguous(), v_SHd.contiguous()
    dq, dk, dv = attention_formulas(q_THd, k_SHd, v_SHd, cu_q, cu_k, scale, grad_THd)
    return dq, dk, dv


@_attention_backward.register_fake
def _(
    grad_THd: torch.Tensor,
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    out_THd: torch.Tensor,
    lse_HT: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    atomic: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return q_THd.new_empty(q_THd.shape), k_SHd.new_empty(k_SHd.shape), v_SHd.new_empty(v_SHd.shape)


def _setup_context(ctx: Context, inputs: Inputs, output: tuple[torch.Tensor, torch.Tensor]) -> None:
    q_THd, k_SHd, v_SHd, cu_q, cu_k, ctx.max_q, ctx.max_k, ctx.scale, ctx.atomic = inputs
    out_THd, lse_HT = output
    ctx.mark_non_differentiable(lse_HT)
    ctx.save_for_backward(q_THd, k_SHd, v_SHd, out_THd, lse_HT, cu_q, cu_k)


def _backward(ctx: Context, grad_THd: torch.Tensor, _: torch.Tensor) -> Gradients:
    rest = (ctx.max_q, ctx.max_k, ctx.scale, ctx.atomic)
    grads = attention_backward_op(grad_THd, *ctx.saved_tensors, *rest)
    return (*grads, *[None] * 6)


attention_op = KernelOp(_attention, TRITON, "attention", _setup_context, _backward)
attention_backward_op = KernelOp(_attention_backward, TRITON, "attention_backward")
