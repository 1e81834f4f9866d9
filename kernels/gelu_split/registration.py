"""torch.library ops of `gelu_split`: schema, formula, Triton kernel, fake, and the op with its gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from camae.kernels._autograd import Context, Gradients, Maybe
from camae.kernels._device import accumulation_dtype
from camae.kernels._kernel_op import KernelOp
from camae.kernels.gelu_split.reference import gelu_columns_backward_formula, gelu_columns_formula

TRITON = "camae.kernels.gelu_split.triton"


@torch.library.custom_op("camae::gelu_columns", mutates_args=())
def _gelu_columns(fused_TF: torch.Tensor, bias_h: Maybe, hidden: int) -> torch.Tensor:
    """GELU(fused[:, :hidden] + bias), (T, hidden)."""
    return gelu_columns_formula(fused_TF, bias_h, hidden)


@_gelu_columns.register_fake
def _(fused_TF: torch.Tensor, bias_h: Maybe, hidden: int) -> torch.Tensor:
    return fused_TF.new_empty(fused_TF.shape[0], hidden)


@torch.library.custom_op("camae::gelu_columns_backward", mutates_args={"grad_fused_TF", "act_Th"})
def _gelu_columns_backward(
    grad_act_Th: torch.Tensor,
    fused_TF: torch.Tensor,
    bias_h: Maybe,
    grad_fused_TF: torch.Tensor,
    act_Th: Maybe,
) -> torch.Tensor:
    """Write the first columns of the fused gradient, and the activation where wanted; the bias's gradient."""
    return gelu_columns_backward_formula(grad_act_Th, fused_TF, bias_h, grad_fused_TF, act_Th)


@_gelu_columns_backward.register_fake
def _(
    grad_act_Th: torch.Tensor,
    fused_TF: torch.Tensor,
    bias_h: Maybe,
    grad_fused_TF: torch.Tensor,
    act_Th: Maybe,
) -> torch.Tensor:
    return grad_act_Th.new_empty(grad_act_Th.shape[1], dtype=accumulation_dtype(fused_TF))


def fused_gradient(
    grad_act_Th: torch.Tensor,
    grad_rest: Sequence[Maybe],
    fused_TF: torch.Tensor,
    bias_h: Maybe,
    widths: Sequence[int],
    act_Th: Maybe = None,
) -> tuple[torch.Tensor, Maybe]:
    """Gradient of the whole product (T, F) and of the bias; fills `act_Th` with the activation where given."""
    shared_TF = _shared_gradient(grad_rest, fused_TF, widths)
    grad_TF = fused_TF.new_empty(fused_TF.shape) if shared_TF is None else shared_TF
    grad_bias = gelu_columns_backward_op(grad_act_Th, fused_TF, bias_h, grad_TF, act_Th)
    if shared_TF is not None:
        return grad_TF, None if bias_h is None else grad_bias.to(bias_h.dtype)
    _, *rest = grad_TF.split(list(widths), dim=1)
    for columns, grad in zip(rest, grad_rest, strict=True):
        if grad is None:
            columns.zero_()
        else:
            columns.copy_(grad)
    return grad_TF, None if bias_h is None else grad_bias.to(bias_h.dtype)


def _shared_gradient(grad_rest: Sequence[Maybe], fused_TF: torch.Tensor, widths: Sequence[int]) -> Maybe:
    """The (T, F) buffer of which the gradients of the other columns are those columns; None where they are not.

    Attention writes its gradients so (`shared_buffers` of varlen_attention).
    """
    (T, F), first, column = fused_TF.shape, grad_rest[0] if grad_rest else None, widths[0]
    if first is None or first.untyped_storage().nbytes() != T * F * first.element_size():
        return None
    for grad, width in zip(grad_rest, widths[1:], strict=True):
        if (
            grad is None
            or grad.dtype != fused_TF.dtype
            or grad.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()
            or grad.shape != (T, width)
            or grad.stride() != (F, 1)
            or grad.storage_offset() != column
        ):
            return None
        column += width
    return first.as_strided((T, F), (F, 1), 0)


gelu_columns_op = KernelOp(_gelu_columns, TRITON, "forward")
gelu_columns_backward_op = KernelOp(_gelu_columns_backward, TRITON, "backward")


class GeluSplit(torch.autograd.Function):
    """The activation and views of the other columns, with one gradient buffer for all columns."""

    @staticmethod
    def forward(
        ctx: Context, fused_TF: torch.Tensor, bias_h: Maybe, widths: tuple[int, ...]
    ) -> tuple[torch.Tensor, ...]:
        ctx.widths = widths
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(fused_TF, bias_h)
        _, *rest = fused_TF.split(list(widths), dim=1)
        return gelu_columns_op(fused_TF, bias_h, widths[0]), *rest

    @staticmethod
    def backward(ctx: Context, *grads: Maybe) -> Gradients:
        grad_act_Th, *grad_rest = grads
        fused_TF, bias_h = ctx.saved_tensors
        if grad_act_Th is None:
            grad_act_Th = fused_TF.new_zeros(fused_TF.shape[0], ctx.widths[0])
        return *fused_gradient(grad_act_Th, grad_rest, fused_TF, bias_h, ctx.widths), None
