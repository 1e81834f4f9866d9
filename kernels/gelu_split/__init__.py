"""gelu_split: bias + GELU + split of a fused projection, with one gradient buffer for all of its columns.

The first columns of the (T, F) product are an MLP's hidden units: act = GELU(x + bias), exact form. The others (q,
k, v of a parallel block) leave as views. Backward, the GELU's part is computed and all parts written into one
(T, F) gradient, so that no concatenation follows; the bias's gradient falls out of the same pass. Floor: forward
reads and writes T*hidden values; backward reads twice, writes once (one more where the activation is recomputed),
and copies the other columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from camae.errors import CamaeError
from camae.kernels._dispatch import (
    Backend,
    choose,
    default_backend,
    interpreting,
    reference_backend,
    triton_backend,
)

Maybe = torch.Tensor | None


def gelu_split_reference(
    fused_TF: torch.Tensor, bias_h: Maybe, widths: Sequence[int]
) -> tuple[torch.Tensor, ...]:
    """The activation and the other columns in plain torch."""
    first, *rest = fused_TF.split(list(widths), dim=1)
    return F.gelu(first if bias_h is None else first + bias_h), *rest


@torch.library.custom_op("camae::gelu_columns", mutates_args=())
def gelu_columns_op(fused_TF: torch.Tensor, bias_h: Maybe, hidden: int) -> torch.Tensor:
    """GELU(fused[:, :hidden] + bias), (T, hidden)."""
    if fused_TF.is_cuda or interpreting():
        from camae.kernels.gelu_split import triton as gelu_split_triton

        return gelu_split_triton.forward(fused_TF, bias_h, hidden)
    x = fused_TF[:, :hidden].to(_sum_dtype(fused_TF))
    return F.gelu(x if bias_h is None else x + bias_h).to(fused_TF.dtype).contiguous()


@gelu_columns_op.register_fake
def _(fused_TF: torch.Tensor, bias_h: Maybe, hidden: int) -> torch.Tensor:
    return fused_TF.new_empty(fused_TF.shape[0], hidden)


@torch.library.custom_op("camae::gelu_columns_backward", mutates_args={"grad_fused_TF", "act_Th"})
def gelu_columns_backward_op(
    grad_act_Th: torch.Tensor,
    fused_TF: torch.Tensor,
    bias_h: Maybe,
    grad_fused_TF: torch.Tensor,
    act_Th: Maybe,
) -> torch.Tensor:
    """Write the first columns of the fused gradient, and the activation where wanted; the bias's gradient."""
    if fused_TF.is_cuda or interpreting():
        from camae.kernels.gelu_split import triton as gelu_split_triton

        grad = grad_act_Th.contiguous()
        return gelu_split_triton.backward(grad, fused_TF, bias_h, grad_fused_TF, act_Th)
    hidden, working = grad_act_Th.shape[1], _sum_dtype(fused_TF)
    x = fused_TF[:, :hidden].to(working)
    x = x if bias_h is None else x + bias_h
    cdf = 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))
    if act_Th is not None:
        act_Th.copy_(x * cdf)
    slope = cdf + x * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    grad = grad_act_Th.to(working) * slope
    grad_fused_TF[:, :hidden] = grad
    return grad.sum(0)


@gelu_columns_backward_op.register_fake
def _(
    grad_act_Th: torch.Tensor,
    fused_TF: torch.Tensor,
    bias_h: Maybe,
    grad_fused_TF: torch.Tensor,
    act_Th: Maybe,
) -> torch.Tensor:
    return grad_act_Th.new_empty(grad_act_Th.shape[1], dtype=_sum_dtype(fused_TF))


def _sum_dtype(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def fused_gradient(
    grad_act_Th: torch.Tensor,
    grad_rest: Sequence[Maybe],
    fused_TF: torch.Tensor,
    bias_h: Maybe,
    widths: Sequence[int],
    act_Th: Maybe = None,
) -> tuple[torch.Tensor, Maybe]:
    """Gradient of the whole product (T, F) and of the bias; fills `act_Th` with the activation where given."""
    grad_TF = fused_TF.new_empty(fused_TF.shape)
    grad_bias = gelu_columns_backward_op(grad_act_Th, fused_TF, bias_h, grad_TF, act_Th)
    _, *rest = grad_TF.split(list(widths), dim=1)
    for columns, grad in zip(rest, grad_rest, strict=True):
        if grad is None:
            columns.zero_()
        else:
            columns.copy_(grad)
    return grad_TF, None if bias_h is None else grad_bias.to(bias_h.dtype)


class _GeluSplit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fused_TF: torch.Tensor, bias_h: Maybe, widths: tuple[int, ...]) -> Any:
        ctx.widths = widths
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(fused_TF, bias_h)
        _, *rest = fused_TF.split(list(widths), dim=1)
        return gelu_columns_op(fused_TF, bias_h, widths[0]), *rest

    @staticmethod
    def backward(ctx: Any, grad_act_Th: Maybe, *grad_rest: Maybe) -> Any:  # type: ignore[override]
        fused_TF, bias_h = ctx.saved_tensors
        if grad_act_Th is None:
            grad_act_Th = fused_TF.new_zeros(fused_TF.shape[0], ctx.widths[0])
        return *fused_gradient(grad_act_Th, grad_rest, fused_TF, bias_h, ctx.widths), None


def backends(device: torch.device | str = "cpu") -> tuple[Backend, ...]:
    """The op's back-ends and whether each can run on `device`."""
    return (triton_backend(device), reference_backend())


def gelu_split(
    fused_TF: torch.Tensor,
    bias_h: Maybe,
    widths: Sequence[int],
    *,
    backend: str | None = None,
) -> tuple[torch.Tensor, ...]:
    """(GELU(first columns + bias), the other columns ...).

    fused_TF: (T, F), rows contiguous, fp32, bf16 or fp16. bias_h: (widths[0],) or None. widths: columns of each
    part, the activation's first; they add up to F. The other parts are views of `fused_TF`.

    Raises CamaeError for widths that do not fit, MissingBackendError for a back-end that cannot run here.
    """
    check_widths(fused_TF, bias_h, widths)
    name = choose("gelu_split", backend, backends(fused_TF.device), default_backend(fused_TF.device))
    if name == "reference":
        return gelu_split_reference(fused_TF, bias_h, widths)
    return _GeluSplit.apply(fused_TF, bias_h, tuple(widths))


def check_widths(fused_TF: torch.Tensor, bias_h: Maybe, widths: Sequence[int]) -> None:
    """Raise CamaeError where columns and bias do not fit."""
    if fused_TF.ndim != 2 or sum(widths) != fused_TF.shape[1] or fused_TF.stride(1) != 1:
        raise CamaeError(
            f"gelu_split: columns {tuple(widths)} do not make up {tuple(fused_TF.shape)} by rows"
        )
    if bias_h is not None and bias_h.shape != (widths[0],):
        raise CamaeError(f"gelu_split: the bias has shape {tuple(bias_h.shape)}, not ({widths[0]},)")
