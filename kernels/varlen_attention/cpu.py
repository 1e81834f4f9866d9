"""C++ back-end of `varlen_attention` on CPUs (`native`), float32: torch.library ops, forward and backward.

csrc/attention/attention_kernel.h and attention_gradient.h, compiled for AVX-512 and for AVX2; in the forward pass
alone the LayerNorm of q and k over the head dim can be inside. A sequence's numbers do not depend on what else is in
the batch nor on the number of threads.
"""

from __future__ import annotations

import torch

from camae.errors import CamaeError
from camae.kernels._autograd import Context, Gradients
from camae.kernels._cpu import WIDTH_STEP, Norm, arrays, bounds, instructions, native_module, stacked


@torch.library.custom_op("camae::cpu_attention", mutates_args=())
def cpu_attention_op(
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
    native_module("attention").attention(
        *arrays(q_THd, k_SHd, v_SHd, out_THd, sums_HT),
        *bounds(cu_q, cu_k),
        scale,
        *norms,
        eps,
        torch.get_num_threads(),
        instruction_set,
    )
    return out_THd, sums_HT


@cpu_attention_op.register_fake
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


@torch.library.custom_op("camae::cpu_attention_backward", mutates_args=())
def cpu_attention_backward_op(
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
    """Gradients of q, k and v; `out` and `sums` as the forward op gave them, without norms."""
    dq, dk, dv = (x.new_empty(x.shape) for x in (q_THd, k_SHd, v_SHd))
    native_module("attention").attention_backward(
        *arrays(grad_THd, q_THd, k_SHd, v_SHd, out_THd, sums_HT, dq, dk, dv),
        *bounds(cu_q, cu_k),
        scale,
        torch.get_num_threads(),
        instruction_set,
    )
    return dq, dk, dv


@cpu_attention_backward_op.register_fake
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
    def forward(
        ctx: Context,
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
    ) -> torch.Tensor:
        out_THd, sums_HT = cpu_attention_op(
            q_THd, k_SHd, v_SHd, cu_q, cu_k, scale, q_norm_2d, k_norm_2d, eps, instruction_set
        )
        ctx.scale, ctx.instruction_set = scale, instruction_set
        ctx.save_for_backward(q_THd, k_SHd, v_SHd, out_THd, sums_HT, cu_q, cu_k)
        return out_THd

    @staticmethod
    def backward(ctx: Context, *grads: torch.Tensor) -> Gradients:
        found = cpu_attention_backward_op(grads[0], *ctx.saved_tensors, ctx.scale, ctx.instruction_set)
        return *found, *[None] * 7


def cpu_attention(
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    scale: float | None = None,
    q_norm: Norm | None = None,
    k_norm: Norm | None = None,
    eps: float = 1e-6,
) -> torch.Tensor:
    """The op with the best instruction set of this processor; arguments as in `varlen_attention`.

    Differentiable in q, k and v; with norms no gradient may be asked. Raises CamaeError for other dtypes than float32
    and head dims that 16 does not divide.
    """
    d = q_THd.shape[-1]
    if q_THd.dtype != torch.float32 or d % WIDTH_STEP:
        raise CamaeError(
            f"attention back-end 'native' takes float32 and head dims that {WIDTH_STEP} divides, not {q_THd.dtype} "
            f"and {d}"
        )
    scale = d**-0.5 if scale is None else scale
    norms = stacked(q_norm), stacked(k_norm)
    return _Attention.apply(q_THd, k_SHd, v_SHd, cu_q, cu_k, scale, *norms, eps, instructions()[0])
