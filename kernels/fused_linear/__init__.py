"""Linear layers together with the memory-bound op before them, which may be recomputed instead of kept.

`norm_linear` is (residual +) LayerNorm + product, `gelu_linear` bias + GELU + split + product. With `keep=False` the
product's input (a normed or activated copy of the tokens) is not kept for the backward pass but computed again from
what is kept anyway: the token stream, and the fused projection. No product and no attention is ever repeated:
selective recomputation in the sense of Korthikanti et al. 2022. The gradients are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from camae.kernels._dispatch import autocast_dtype, choose, default_backend
from camae.kernels.gelu_split import (
    check_widths,
    fused_gradient,
    gelu_columns_op,
    gelu_split_reference,
)
from camae.kernels.residual_norm import (
    Maybe,
    gradients_of,
    residual_norm_op,
    residual_norm_reference,
)
from camae.kernels.residual_norm import (
    backends as norm_backends,
)


def _weight_gradients(
    ctx: Any, grad: torch.Tensor, inputs: Any, weight: torch.Tensor, bias: Maybe, first: int
) -> tuple[Maybe, Maybe]:
    """Gradients of weight and bias, where input number `first` and the next want one."""
    grad_weight = grad.t() @ inputs if ctx.needs_input_grad[first] else None
    grad_bias = grad.sum(0) if bias is not None and ctx.needs_input_grad[first + 1] else None
    return grad_weight, grad_bias


class _NormLinear(torch.autograd.Function):
    """(y, product) of residual_norm and a linear layer; y is x itself without an update, and then not returned."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: torch.Tensor,
        update_TD: Maybe,
        gamma_D: Maybe,
        factor_B: Maybe,
        segment_T: Maybe,
        norm_weight_D: torch.Tensor,
        norm_bias_D: torch.Tensor,
        eps: float,
        weight_FD: torch.Tensor,
        bias_F: Maybe,
        keep: bool,
        kernels: bool,
    ) -> Any:
        residual = (x_TD, update_TD, gamma_D, factor_B, segment_T)
        if kernels:
            y_TD, normed_TD = residual_norm_op(*residual, norm_weight_D, norm_bias_D, eps, weight_FD.dtype)
            y_TD = x_TD if update_TD is None else y_TD
        else:
            y_TD = residual_norm_reference(*residual)[0]
            normed_TD = _normed(y_TD, norm_weight_D, norm_bias_D, eps, weight_FD.dtype)
        ctx.eps, ctx.kernels, ctx.keep = eps, kernels, keep
        ctx.dtypes = [None if t is None else t.dtype for t in (*residual[:3], norm_weight_D, norm_bias_D)]
        ctx.save_for_backward(
            y_TD,
            update_TD if gamma_D is not None else None,
            *residual[2:],
            norm_weight_D,
            norm_bias_D,
            weight_FD,
            bias_F,
            normed_TD if keep else None,
        )
        out_TF = F.linear(normed_TD, weight_FD, bias_F)
        return out_TF if update_TD is None else (y_TD, out_TF)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:  # type: ignore[override]
        y_TD, update_TD, gamma_D, factor_B, segment_T, nw_D, nb_D, weight_FD, bias_F, normed_TD = (
            ctx.saved_tensors
        )
        grad_y_TD = None if ctx.dtypes[1] is None else grads[0]
        grad_TF = grads[-1]
        if normed_TD is None and ctx.kernels:
            nothing = (None, None, None, None)
            normed_TD = residual_norm_op(y_TD, *nothing, nw_D, nb_D, ctx.eps, weight_FD.dtype)[1]
        elif normed_TD is None:
            normed_TD = _normed(y_TD, nw_D, nb_D, ctx.eps, weight_FD.dtype)
        grad_weight, grad_bias = _weight_gradients(ctx, grad_TF, normed_TD, weight_FD, bias_F, 8)
        grad_normed_TD = grad_TF @ weight_FD
        kept = (update_TD, gamma_D, factor_B, segment_T)
        if ctx.kernels:
            dx, du, dgamma, dw, db = gradients_of(
                grad_y_TD, grad_normed_TD, y_TD, *kept, nw_D, ctx.eps, ctx.dtypes
            )
        else:
            dx, dw, db = _norm_gradients(grad_y_TD, grad_normed_TD, y_TD, nw_D, nb_D, ctx.eps)
            du, dgamma = _residual_gradients(dx, *kept, ctx.dtypes[1])
            dx = dx.to(ctx.dtypes[0])
        return dx, du, dgamma, None, None, dw, db, None, grad_weight, grad_bias, None, None


def _normed(
    y_TD: torch.Tensor, weight_D: torch.Tensor, bias_D: torch.Tensor, eps: float, dtype: torch.dtype
) -> torch.Tensor:
    """LayerNorm in the precision of its weight, rounded to the product's."""
    return F.layer_norm(y_TD.to(weight_D.dtype), weight_D.shape, weight_D, bias_D, eps).to(dtype)


def _norm_gradients(
    grad_y_TD: Maybe,
    grad_normed_TD: torch.Tensor,
    y_TD: torch.Tensor,
    weight_D: torch.Tensor,
    bias_D: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    """Gradients of y (both branches), weight and bias, by torch's own backward pass of a norm computed again."""
    leaves = [t.detach().requires_grad_() for t in (y_TD, weight_D, bias_D)]
    with torch.enable_grad():
        again = _normed(leaves[0], leaves[1], leaves[2], eps, grad_normed_TD.dtype)
    dy, dw, db = torch.autograd.grad(again, leaves, grad_normed_TD)
    return dy if grad_y_TD is None else dy + grad_y_TD, dw, db


def _residual_gradients(
    grad_y_TD: torch.Tensor,
    update_TD: Maybe,
    gamma_D: Maybe,
    factor_B: Maybe,
    segment_T: Maybe,
    dtype: torch.dtype | None,
) -> tuple[Maybe, Maybe]:
    """Gradients of the update (None without one) and of gamma."""
    if dtype is None:
        return None, None
    g = grad_y_TD if factor_B is None else grad_y_TD * factor_B.to(grad_y_TD.dtype)[segment_T, None]
    if gamma_D is None or update_TD is None:  # the update is kept for gamma alone
        return g.to(dtype), None
    return (g * gamma_D).to(dtype), (g * update_TD).sum(0).to(gamma_D.dtype)


class _GeluLinear(torch.autograd.Function):
    """Linear layer on GELU(first columns + bias), and views of the other columns."""

    @staticmethod
    def forward(
        ctx: Any,
        fused_TF: torch.Tensor,
        bias_h: Maybe,
        widths: tuple[int, ...],
        weight_Dh: torch.Tensor,
        bias_D: Maybe,
        keep: bool,
        kernels: bool,
    ) -> Any:
        if kernels:
            act_Th = gelu_columns_op(fused_TF, bias_h, widths[0])
        else:
            act_Th = gelu_split_reference(fused_TF, bias_h, widths)[0].to(weight_Dh.dtype)
        ctx.widths, ctx.kernels = widths, kernels
        ctx.save_for_backward(fused_TF, bias_h, weight_Dh, bias_D, act_Th if keep else None)
        _, *rest = fused_TF.split(list(widths), dim=1)
        return F.linear(act_Th, weight_Dh, bias_D), *rest

    @staticmethod
    def backward(ctx: Any, grad_TD: torch.Tensor, *grad_rest: torch.Tensor) -> Any:  # type: ignore[override]
        fused_TF, bias_h, weight_Dh, bias_D, act_Th = ctx.saved_tensors
        grad_act_Th = grad_TD @ weight_Dh
        if ctx.kernels:
            again = fused_TF.new_empty(grad_act_Th.shape) if act_Th is None else None
            grad_fused, grad_bias_h = fused_gradient(
                grad_act_Th, grad_rest, fused_TF, bias_h, ctx.widths, again
            )
        else:
            again, grad_first, grad_bias_h = _gelu_gradients(
                grad_act_Th, fused_TF[:, : ctx.widths[0]], bias_h
            )
            grad_fused = torch.cat([grad_first, *grad_rest], 1)
        inputs = again if act_Th is None else act_Th
        grad_weight, grad_bias = _weight_gradients(ctx, grad_TD, inputs, weight_Dh, bias_D, 3)
        return grad_fused, grad_bias_h, None, grad_weight, grad_bias, None, None


def _gelu_gradients(
    grad_act_Th: torch.Tensor, first_Th: torch.Tensor, bias_h: Maybe
) -> tuple[torch.Tensor, torch.Tensor, Maybe]:
    """The activation computed again, and gradients of the columns and the bias by torch's own backward pass."""
    leaf, bias = (
        first_Th.detach().requires_grad_(),
        None if bias_h is None else bias_h.detach().requires_grad_(),
    )
    with torch.enable_grad():
        again = F.gelu(leaf if bias is None else leaf + bias).to(grad_act_Th.dtype)
    inputs = (leaf,) if bias is None else (leaf, bias)
    grads = torch.autograd.grad(again, inputs, grad_act_Th)
    return again.detach(), grads[0], None if bias is None else grads[1]


def glue_backend(requested: str | None, device: torch.device) -> str:
    """The back-end that residual_norm, gelu_split and the functions here take on a device."""
    return choose("residual_norm", requested, norm_backends(device), default_backend(device))


def _cast(device: torch.device, *tensors: Maybe) -> list[Maybe]:
    """In the dtype autocast asks for, which an autograd function has to see to itself."""
    low = autocast_dtype(device)
    return [t if t is None or low is None else t.to(low) for t in tensors]


def norm_linear(
    x_TD: torch.Tensor,
    norm_weight_D: torch.Tensor,
    norm_bias_D: torch.Tensor,
    eps: float,
    weight_FD: torch.Tensor,
    bias_F: Maybe,
    *,
    update_TD: Maybe = None,
    gamma_D: Maybe = None,
    factor_B: Maybe = None,
    segment_T: Maybe = None,
    keep: bool = True,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, LayerNorm(y) weight^T + bias), y = x + factor[segment] * gamma * update: shapes as in `residual_norm`.

    keep: False: the normed tokens are computed again in the backward pass instead of kept.
    backend: of residual_norm, "triton" or "reference". Raises MissingBackendError for one that cannot run here.
    """
    device = x_TD.device
    name = glue_backend(backend, device)
    residual = (x_TD, update_TD, gamma_D, factor_B, segment_T)
    if name == "reference" and keep:
        y_TD, normed_TD = residual_norm_reference(*residual, norm_weight_D, norm_bias_D, eps)
        return y_TD, F.linear(normed_TD, weight_FD, bias_F)  # type: ignore[arg-type]
    weight_FD, bias_F = _cast(device, weight_FD, bias_F)  # type: ignore[assignment]
    out = _NormLinear.apply(
        *residual, norm_weight_D, norm_bias_D, eps, weight_FD, bias_F, keep, name == "triton"
    )
    return (x_TD, out) if update_TD is None else out


def gelu_linear(
    fused_TF: torch.Tensor,
    bias_h: Maybe,
    widths: Sequence[int],
    weight_Dh: torch.Tensor,
    bias_D: Maybe,
    *,
    keep: bool = True,
    backend: str | None = None,
) -> tuple[torch.Tensor, ...]:
    """(GELU(first columns + bias_h) weight^T + bias, the other columns ...): shapes as in `gelu_split`.

    keep: False: the activation is computed again in the backward pass instead of kept.
    backend: of gelu_split, "triton" or "reference". Raises MissingBackendError for one that cannot run here.
    """
    check_widths(fused_TF, bias_h, widths)
    device = fused_TF.device
    name = glue_backend(backend, device)
    if name == "reference" and keep:
        act_Th, *rest = gelu_split_reference(fused_TF, bias_h, widths)
        return F.linear(act_Th, weight_Dh, bias_D), *rest
    weight_Dh, bias_D = _cast(device, weight_Dh, bias_D)  # type: ignore[assignment]
    return _GeluLinear.apply(fused_TF, bias_h, tuple(widths), weight_Dh, bias_D, keep, name == "triton")
