"""torch.library ops of `residual_norm`: schema, formula, Triton kernel, fake and gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from camae.kernels._autograd import Context, Gradients, Inputs, Maybe
from camae.kernels._device import accumulation_dtype
from camae.kernels._kernel_op import KernelOp
from camae.kernels.residual_norm.reference import residual_norm_gradients, residual_norm_reference

TRITON = "camae.kernels.residual_norm.triton"


def stream_dtype(x_TD: torch.Tensor, update_TD: Maybe, gamma_D: Maybe) -> torch.dtype:
    """The dtype of y: torch's promotion of x + gamma * update."""
    dtype = x_TD.dtype
    for other in (update_TD, gamma_D):
        dtype = dtype if other is None else torch.promote_types(dtype, other.dtype)
    return dtype


@torch.library.custom_op("camae::residual_norm", mutates_args=())
def _residual_norm(
    x_TD: torch.Tensor,
    update_TD: Maybe,
    gamma_D: Maybe,
    factor_B: Maybe,
    segment_T: Maybe,
    weight_D: Maybe,
    bias_D: Maybe,
    eps: float,
    working: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y (T, D), empty without an update, and normed (T, D) in `working`, empty without a weight."""
    y_TD, normed_TD = empty_outputs(x_TD, update_TD, gamma_D, weight_D, working)
    y, normed = residual_norm_reference(x_TD, update_TD, gamma_D, factor_B, segment_T)[0], None
    if weight_D is not None:
        normed = F.layer_norm(y.to(weight_D.dtype), y.shape[-1:], weight_D, bias_D, eps)
    if update_TD is not None:
        y_TD.copy_(y)
    return y_TD, normed_TD if normed is None else normed_TD.copy_(normed)


@_residual_norm.register_fake
def _(
    x_TD: torch.Tensor,
    update_TD: Maybe,
    gamma_D: Maybe,
    factor_B: Maybe,
    segment_T: Maybe,
    weight_D: Maybe,
    bias_D: Maybe,
    eps: float,
    working: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    return empty_outputs(x_TD, update_TD, gamma_D, weight_D, working)


def empty_outputs(
    x_TD: torch.Tensor, update_TD: Maybe, gamma_D: Maybe, weight_D: Maybe, working: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """y and normed, not filled."""
    stream = stream_dtype(x_TD, update_TD, gamma_D)
    return (
        x_TD.new_empty((0,) if update_TD is None else x_TD.shape, dtype=stream),
        x_TD.new_empty((0,) if weight_D is None else x_TD.shape, dtype=working),
    )


@torch.library.custom_op("camae::residual_norm_backward", mutates_args=())
def _residual_norm_backward(
    grad_y_TD: Maybe,
    grad_normed_TD: Maybe,
    y_TD: torch.Tensor,
    update_TD: Maybe,
    gamma_D: Maybe,
    factor_B: Maybe,
    segment_T: Maybe,
    weight_D: Maybe,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x in y's dtype (empty without a norm: that of y), of the update, and (3, D).

    That of the update is empty without one; the last are those of weight, bias and gamma.
    """
    grad_x, grad_update, _ = empty_gradients(y_TD, update_TD, weight_D)
    wide_TD = y_TD.to(accumulation_dtype(y_TD))
    residual = (update_TD, gamma_D, factor_B, segment_T)
    dx, du, sums = residual_norm_gradients(grad_y_TD, grad_normed_TD, wide_TD, *residual, weight_D, eps)
    if weight_D is not None:
        grad_x.copy_(dx)
    return grad_x, grad_update if du is None else grad_update.copy_(du), sums


@_residual_norm_backward.register_fake
def _(
    grad_y_TD: Maybe,
    grad_normed_TD: Maybe,
    y_TD: torch.Tensor,
    update_TD: Maybe,
    gamma_D: Maybe,
    factor_B: Maybe,
    segment_T: Maybe,
    weight_D: Maybe,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return empty_gradients(y_TD, update_TD, weight_D)


def empty_gradients(
    y_TD: torch.Tensor, update_TD: Maybe, weight_D: Maybe
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, of the update, and (3, D) of weight, bias and gamma, not filled; absent ones empty."""
    grad_update = y_TD.new_empty(0) if update_TD is None else update_TD.new_empty(update_TD.shape)
    return (
        y_TD.new_empty((0,) if weight_D is None else y_TD.shape),
        grad_update,
        y_TD.new_empty(3, y_TD.shape[1], dtype=accumulation_dtype(y_TD)),
    )


def _setup_context(ctx: Context, inputs: Inputs, output: tuple[torch.Tensor, torch.Tensor]) -> None:
    x_TD, update_TD, gamma_D, factor_B, segment_T, weight_D, bias_D, ctx.eps, _ = inputs
    y_TD = x_TD if update_TD is None else output[0]
    # y itself is needed by the norm alone; the update's values by gamma alone.
    kept_update = None if gamma_D is None else update_TD
    ctx.dtypes = [None if x is None else x.dtype for x in (x_TD, update_TD, gamma_D, weight_D, bias_D)]
    ctx.normed = weight_D is not None
    ctx.save_for_backward(y_TD if ctx.normed else None, kept_update, gamma_D, factor_B, segment_T, weight_D)


def _backward(ctx: Context, grad_y_TD: Maybe, grad_normed_TD: Maybe) -> Gradients:
    y_TD, update_TD, gamma_D, factor_B, segment_T, weight_D = ctx.saved_tensors
    added = ctx.dtypes[1] is not None
    grads = gradients_of(
        grad_y_TD if added else None,
        grad_normed_TD if ctx.normed else None,
        y_TD,
        update_TD,
        gamma_D,
        factor_B,
        segment_T,
        weight_D,
        ctx.eps,
        ctx.dtypes,
    )
    dx, du, dgamma, dweight, dbias = grads
    return dx, du, dgamma, None, None, dweight, dbias, None, None


def gradients_of(
    grad_y_TD: Maybe,
    grad_normed_TD: Maybe,
    y_TD: Maybe,
    update_TD: Maybe,
    gamma_D: Maybe,
    factor_B: Maybe,
    segment_T: Maybe,
    weight_D: Maybe,
    eps: float,
    dtypes: Sequence[torch.dtype | None],
) -> Gradients:
    """Gradients of x, update, gamma, weight and bias in `dtypes` (None: not an input), from saved tensors."""
    like_TD = grad_y_TD if y_TD is None else y_TD  # without a norm its values are not read
    assert like_TD is not None
    if update_TD is None and dtypes[1] is not None:  # without gamma only the update's shape and dtype matter
        update_TD = like_TD.new_empty(like_TD.shape, dtype=dtypes[1])
    dx, du, sums = residual_norm_backward_op(
        grad_y_TD, grad_normed_TD, like_TD, update_TD, gamma_D, factor_B, segment_T, weight_D, eps
    )
    found = (grad_y_TD if weight_D is None else dx, du, sums[2], sums[0], sums[1])
    return tuple(None if t is None else g.to(t) for g, t in zip(found, dtypes, strict=True))


residual_norm_op = KernelOp(_residual_norm, TRITON, "residual_norm", _setup_context, _backward)
residual_norm_backward_op = KernelOp(_residual_norm_backward, TRITON, "residual_norm_backward")
