"""torch.library ops of normed attention: LayerNorm of q and k over the head dim inside the kernels.

softmax(LN(q) LN(k)^T * scale) v for every sequence, what ViTs with "qk norm" compute (Dehghani et al. 2023). The
normed q never reaches memory and the normed k only for the length of a pass, so that only the raw projections are saved
for the backward pass. Called through `varlen_attention(..., q_norm=, k_norm=)`; the derivation is in
head_norm_triton.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from camae.kernels._autograd import Context, Gradients, Inputs
from camae.kernels._device import accumulation_dtype
from camae.kernels._kernel_op import KernelOp
from camae.kernels.residual_norm.reference import residual_norm_gradients
from camae.kernels.varlen_attention.reference import attention_formulas

TRITON = "camae.kernels.varlen_attention.triton"
Four = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _norm(x_THd: torch.Tensor, weight_d: torch.Tensor, bias_d: torch.Tensor, eps: float) -> torch.Tensor:
    return F.layer_norm(x_THd.to(weight_d.dtype), weight_d.shape, weight_d, bias_d, eps).to(x_THd.dtype)


def _norm_gradient(
    grad_THd: torch.Tensor, x_THd: torch.Tensor, weight_d: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of x and (3, d) of which the first two rows are those of weight and bias."""
    d = x_THd.shape[-1]
    rows = x_THd.to(weight_d.dtype).reshape(-1, d)
    dx, _, sums = residual_norm_gradients(
        None, grad_THd.reshape(-1, d), rows, None, None, None, None, weight_d, eps
    )
    return dx.reshape(x_THd.shape).to(x_THd.dtype), sums


@torch.library.custom_op("camae::normed_attention", mutates_args=())
def _normed_attention(
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    q_weight_d: torch.Tensor,
    q_bias_d: torch.Tensor,
    k_weight_d: torch.Tensor,
    k_bias_d: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    eps: float,
    atomic: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """out (T, H, d), and log2 of the softmax denominators up to a constant by row (H, T)."""
    q = _norm(q_THd, q_weight_d, q_bias_d, eps)
    k = _norm(k_SHd, k_weight_d, k_bias_d, eps)
    out_THd, lse_HT = attention_formulas(q, k, v_SHd.contiguous(), cu_q, cu_k, scale)
    return out_THd, lse_HT.to(accumulation_dtype(q_THd))


@_normed_attention.register_fake
def _(
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    q_weight_d: torch.Tensor,
    q_bias_d: torch.Tensor,
    k_weight_d: torch.Tensor,
    k_bias_d: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    eps: float,
    atomic: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    T, H, d = q_THd.shape
    return q_THd.new_empty(T, H, d), q_THd.new_empty(H, T, dtype=accumulation_dtype(q_THd))


@torch.library.custom_op("camae::normed_attention_backward", mutates_args=())
def _normed_attention_backward(
    grad_THd: torch.Tensor,
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    q_weight_d: torch.Tensor,
    q_bias_d: torch.Tensor,
    k_weight_d: torch.Tensor,
    k_bias_d: torch.Tensor,
    out_THd: torch.Tensor,
    lse_HT: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    eps: float,
    atomic: bool,
) -> Four:
    """Gradients of q, k, v and (3, d) of q's weight, q's bias and k's weight; k's bias has none."""
    q = _norm(q_THd, q_weight_d, q_bias_d, eps)
    k = _norm(k_SHd, k_weight_d, k_bias_d, eps)
    dq, dk, dv = attention_formulas(q, k, v_SHd.contiguous(), cu_q, cu_k, scale, grad_THd)
    dq, q_sums = _norm_gradient(dq, q_THd, q_weight_d, eps)
    dk, k_sums = _norm_gradient(dk, k_SHd, k_weight_d, eps)
    return dq.contiguous(), dk.contiguous(), dv, torch.stack([q_sums[0], q_sums[1], k_sums[0]])


@_normed_attention_backward.register_fake
def _(
    grad_THd: torch.Tensor,
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    q_weight_d: torch.Tensor,
    q_bias_d: torch.Tensor,
    k_weight_d: torch.Tensor,
    k_bias_d: torch.Tensor,
    out_THd: torch.Tensor,
    lse_HT: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    eps: float,
    atomic: bool,
) -> Four:
    dq, dk, dv = (x.new_empty(x.shape) for x in (q_THd, k_SHd, v_SHd))
    return dq, dk, dv, q_weight_d.new_empty(3, q_THd.shape[2], dtype=accumulation_dtype(q_weight_d))


def _setup_context(ctx: Context, inputs: Inputs, output: tuple[torch.Tensor, ...]) -> None:
    *tensors, ctx.max_q, ctx.max_k, ctx.scale, ctx.eps, ctx.atomic = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*tensors[:7], *output, *tensors[7:])


def _backward(ctx: Context, grad_THd: torch.Tensor, *_: torch.Tensor) -> Gradients:
    saved = ctx.saved_tensors
    rest = (ctx.max_q, ctx.max_k, ctx.scale, ctx.eps, ctx.atomic)
    *grads, vectors = normed_attention_backward_op(grad_THd, *saved, *rest)
    q_weight_d, q_bias_d, k_weight_d, k_bias_d = saved[3:7]
    sums = [g.to(w.dtype) for g, w in zip(vectors, (q_weight_d, q_bias_d, k_weight_d), strict=True)]
    return *grads, *sums, torch.zeros_like(k_bias_d), *[None] * 7


normed_attention_op = KernelOp(_normed_attention, TRITON, "normed_attention", _setup_context, _backward)
normed_attention_backward_op = KernelOp(
    _normed_attention_backward,
    TRITON,
    "normed_attention_backward",
    in_place="normed_attention_backward_in_place",
)
