"""residual_norm: the memory-bound part between two products of a transformer block, in one pass.

y = x + factor[sample] * gamma * update (residual, LayerScale of Touvron et al. 2021, stochastic depth of Huang et
al. 2016 by sample) and normed = LayerNorm(y), each part optional. Floor: x, update read, y, normed written once
(T*D values each); backward: grad_y, grad_normed, y, update read, grad_x, grad_update written once. Mean and
spread of a row are recomputed in the backward pass, so that nothing but y and update has to be kept.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from camae.errors import CamaeError
from camae.kernels._dispatch import (
    Backend,
    autocast_dtype,
    choose,
    default_backend,
    interpreting,
    reference_backend,
    triton_backend,
)

Maybe = torch.Tensor | None


def residual_norm_reference(
    x_TD: torch.Tensor,
    update_TD: Maybe = None,
    gamma_D: Maybe = None,
    factor_B: Maybe = None,
    segment_T: Maybe = None,
    weight_D: Maybe = None,
    bias_D: Maybe = None,
    eps: float = 1e-6,
) -> tuple[torch.Tensor, Maybe]:
    """(y, normed) in plain torch; normed is None without a weight."""
    y_TD = x_TD
    if update_TD is not None:
        change = update_TD if gamma_D is None else gamma_D * update_TD
        if factor_B is not None:
            change = change * factor_B.to(change.dtype)[segment_T, None]
        y_TD = x_TD + change
    return y_TD, None if weight_D is None else F.layer_norm(y_TD, y_TD.shape[-1:], weight_D, bias_D, eps)


def backward_formulas(
    grad_y_TD: Maybe,
    grad_normed_TD: Maybe,
    y_TD: torch.Tensor,
    update_TD: Maybe,
    gamma_D: Maybe,
    factor_B: Maybe,
    segment_T: Maybe,
    weight_D: Maybe,
    eps: float,
) -> tuple[torch.Tensor, Maybe, torch.Tensor]:
    """Gradients of x, of the update, and (3, D) of weight, bias and gamma, by formula, in y's dtype."""
    g = torch.zeros_like(y_TD) if grad_y_TD is None else grad_y_TD.to(y_TD.dtype)
    sums = y_TD.new_zeros(3, y_TD.shape[1])
    if weight_D is not None and grad_normed_TD is not None:
        slope = grad_normed_TD.to(y_TD.dtype)
        centered = y_TD - y_TD.mean(1, keepdim=True)
        rstd = ((centered**2).mean(1, keepdim=True) + eps).rsqrt()
        unit = centered * rstd
        sums[0], sums[1] = (slope * unit).sum(0), slope.sum(0)
        slope = slope * weight_D
        g = g + rstd * (slope - slope.mean(1, keepdim=True) - unit * (slope * unit).mean(1, keepdim=True))
    grad_x, grad_update = g, None
    if update_TD is not None:
        if factor_B is not None:
            g = g * factor_B.to(g.dtype)[segment_T, None]
        if gamma_D is not None:
            sums[2] = (g * update_TD).sum(0)
            g = g * gamma_D
        grad_update = g.to(update_TD.dtype)
    return grad_x, grad_update, sums


def stream_dtype(x_TD: torch.Tensor, update_TD: Maybe, gamma_D: Maybe) -> torch.dtype:
    """The dtype of y: torch's promotion of x + gamma * update."""
    dtype = x_TD.dtype
    for other in (update_TD, gamma_D):
        dtype = dtype if other is None else torch.promote_types(dtype, other.dtype)
    return dtype


def _sum_dtype(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@torch.library.custom_op("camae::residual_norm", mutates_args=())
def residual_norm_op(
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
    y_TD, normed_TD = _outputs(x_TD, update_TD, gamma_D, weight_D, working)
    if x_TD.is_cuda or interpreting():
        from camae.kernels.residual_norm import triton as residual_norm_triton

        tensors = (x_TD, update_TD, gamma_D, factor_B, segment_T, weight_D, bias_D)
        residual_norm_triton.forward(*map(_contiguous, tensors), eps, y_TD, normed_TD)  # type: ignore[arg-type, call-arg]
        return y_TD, normed_TD
    y, normed = residual_norm_reference(x_TD, update_TD, gamma_D, factor_B, segment_T)[0], None
    if weight_D is not None:
        normed = F.layer_norm(y.to(weight_D.dtype), y.shape[-1:], weight_D, bias_D, eps)
    return y_TD if update_TD is None else y_TD.copy_(y), normed_TD if normed is None else normed_TD.copy_(
        normed
    )


@residual_norm_op.register_fake
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
    return _outputs(x_TD, update_TD, gamma_D, weight_D, working)


def _outputs(
    x_TD: torch.Tensor, update_TD: Maybe, gamma_D: Maybe, weight_D: Maybe, working: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    stream = stream_dtype(x_TD, update_TD, gamma_D)
    return (
        x_TD.new_empty((0,) if update_TD is None else x_TD.shape, dtype=stream),
        x_TD.new_empty((0,) if weight_D is None else x_TD.shape, dtype=working),
    )


def _contiguous(x: Maybe) -> Maybe:
    return None if x is None else x.contiguous()


@torch.library.custom_op("camae::residual_norm_backward", mutates_args=())
def residual_norm_backward_op(
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
    """Gradients of x in y's dtype, of the update (empty without one), and (3, D) of weight, bias and gamma."""
    grad_x, grad_update, _ = _gradients(y_TD, update_TD)
    if y_TD.is_cuda or interpreting():
        from camae.kernels.residual_norm import triton as residual_norm_triton

        tensors = (grad_y_TD, grad_normed_TD, y_TD, update_TD, gamma_D, factor_B, segment_T, weight_D)
        written = None if update_TD is None else grad_update
        sums = residual_norm_triton.backward(*map(_contiguous, tensors), eps, grad_x, written)  # type: ignore[arg-type, call-arg]
        return grad_x, grad_update, sums
    wide_TD = y_TD.to(_sum_dtype(y_TD))
    residual = (update_TD, gamma_D, factor_B, segment_T)
    dx, du, sums = backward_formulas(grad_y_TD, grad_normed_TD, wide_TD, *residual, weight_D, eps)
    return grad_x.copy_(dx), grad_update if du is None else grad_update.copy_(du), sums


@residual_norm_backward_op.register_fake
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
    return _gradients(y_TD, update_TD)


def _gradients(y_TD: torch.Tensor, update_TD: Maybe) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    grad_update = y_TD.new_empty(0) if update_TD is None else update_TD.new_empty(update_TD.shape)
    return y_TD.new_empty(y_TD.shape), grad_update, y_TD.new_empty(3, y_TD.shape[1], dtype=_sum_dtype(y_TD))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    x_TD, update_TD, gamma_D, factor_B, segment_T, weight_D, bias_D, ctx.eps, _ = inputs
    y_TD = x_TD if update_TD is None else output[0]
    # y itself is needed by the norm alone; the update's values by gamma alone.
    kept_update = None if gamma_D is None else update_TD
    ctx.dtypes = [None if x is None else x.dtype for x in (x_TD, update_TD, gamma_D, weight_D, bias_D)]
    ctx.normed = weight_D is not None
    ctx.save_for_backward(y_TD if ctx.normed else None, kept_update, gamma_D, factor_B, segment_T, weight_D)


def _backward(ctx: Any, grad_y_TD: Maybe, grad_normed_TD: Maybe) -> tuple[Maybe, ...]:
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
    dtypes: list[torch.dtype | None],
) -> tuple[Maybe, ...]:
    """Gradients of x, update, gamma, weight and bias in `dtypes` (None: not an input), from what was kept."""
    if y_TD is None:  # no norm: its values are not read
        y_TD = grad_y_TD
    if update_TD is None and dtypes[1] is not None:  # without gamma only the update's shape and dtype matter
        update_TD = y_TD.new_empty(y_TD.shape, dtype=dtypes[1])  # type: ignore[union-attr, arg-type]
    dx, du, sums = residual_norm_backward_op(
        grad_y_TD, grad_normed_TD, y_TD, update_TD, gamma_D, factor_B, segment_T, weight_D, eps
    )
    found = (dx, du, sums[2], sums[0], sums[1])
    return tuple(None if t is None else g.to(t) for g, t in zip(found, dtypes, strict=True))


residual_norm_op.register_autograd(_backward, setup_context=_setup_context)


def backends(device: torch.device | str = "cpu") -> tuple[Backend, ...]:
    """The op's back-ends and whether each can run on `device`."""
    return (triton_backend(device), reference_backend())


def residual_norm(
    x_TD: torch.Tensor,
    update_TD: Maybe = None,
    gamma_D: Maybe = None,
    factor_B: Maybe = None,
    segment_T: Maybe = None,
    weight_D: Maybe = None,
    bias_D: Maybe = None,
    *,
    eps: float = 1e-6,
    backend: str | None = None,
) -> tuple[torch.Tensor, Maybe]:
    """(y, normed): y = x + factor[segment] * gamma * update, normed = LayerNorm(y) * weight + bias.

    x_TD, update_TD: (T, D) packed tokens in fp32, bf16 or fp16 (each its own); without an update y is x.
    gamma_D: (D,) LayerScale, or None. factor_B, segment_T: (B,) what stochastic depth leaves of every sample's
    update (0 or 1 / (1 - rate)) and the (T,) int64 sample of every row, or None.
    weight_D, bias_D: (D,) of the norm; without them normed is None. y follows torch's promotion; normed has the
    dtype autocast asks for, else y's.

    Raises CamaeError for shapes that do not fit, MissingBackendError for a back-end that cannot run here.
    """
    _check(x_TD, update_TD, factor_B, segment_T, weight_D, bias_D)
    name = choose("residual_norm", backend, backends(x_TD.device), default_backend(x_TD.device))
    if name == "reference":
        return residual_norm_reference(x_TD, update_TD, gamma_D, factor_B, segment_T, weight_D, bias_D, eps)
    working = autocast_dtype(x_TD.device) or stream_dtype(x_TD, update_TD, gamma_D)
    y_TD, normed_TD = residual_norm_op(
        x_TD, update_TD, gamma_D, factor_B, segment_T, weight_D, bias_D, eps, working
    )
    return x_TD if update_TD is None else y_TD, None if weight_D is None else normed_TD


def _check(
    x_TD: torch.Tensor,
    update_TD: Maybe,
    factor_B: Maybe,
    segment_T: Maybe,
    weight_D: Maybe,
    bias_D: Maybe,
) -> None:
    if x_TD.ndim != 2 or (update_TD is not None and update_TD.shape != x_TD.shape):
        other = "" if update_TD is None else f" and an update {tuple(update_TD.shape)}"
        raise CamaeError(f"residual_norm needs tokens (T, D) of equal shapes, got {tuple(x_TD.shape)}{other}")
    if (factor_B is None) != (segment_T is None) or (weight_D is None) != (bias_D is None):
        raise CamaeError("residual_norm takes factor and segment together, and weight and bias together")
