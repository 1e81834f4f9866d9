"""Autograd functions of `norm_linear` and `gelu_linear`: what is saved, what is recomputed."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from camae.kernels._autograd import Context, Gradients, Maybe
from camae.kernels.fused_linear.reference import (
    gelu_gradients,
    norm_gradients,
    residual_gradients,
    rounded_norm,
)
from camae.kernels.gelu_split.reference import gelu_split_reference
from camae.kernels.gelu_split.registration import fused_gradient, gelu_columns_op
from camae.kernels.residual_norm.reference import residual_norm_reference
from camae.kernels.residual_norm.registration import gradients_of, residual_norm_op


def _weight_gradients(
    ctx: Context, grad: torch.Tensor, inputs: torch.Tensor, bias: Maybe, first: int
) -> tuple[Maybe, Maybe]:
    """Gradients of weight and bias, where input number `first` and the next want one."""
    grad_weight = grad.t() @ inputs if ctx.needs_input_grad[first] else None
    grad_bias = grad.sum(0) if bias is not None and ctx.needs_input_grad[first + 1] else None
    return grad_weight, grad_bias


class NormLinear(torch.autograd.Function):
    """(y, product) of residual_norm and a linear layer; y is x itself without an update, and then not returned."""

    @staticmethod
    def forward(
        ctx: Context,
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
        save_activations: bool,
        kernels: bool,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        residual = (x_TD, update_TD, gamma_D, factor_B, segment_T)
        if kernels:
            y_TD, normed_TD = residual_norm_op(*residual, norm_weight_D, norm_bias_D, eps, weight_FD.dtype)
            y_TD = x_TD if update_TD is None else y_TD
        else:
            y_TD = residual_norm_reference(*residual)[0]
            normed_TD = rounded_norm(y_TD, norm_weight_D, norm_bias_D, eps, weight_FD.dtype)
        ctx.eps, ctx.kernels = eps, kernels
        ctx.dtypes = [None if t is None else t.dtype for t in (*residual[:3], norm_weight_D, norm_bias_D)]
        ctx.save_for_backward(
            y_TD,
            update_TD if gamma_D is not None else None,
            *residual[2:],
            norm_weight_D,
            norm_bias_D,
            weight_FD,
            bias_F,
            normed_TD if save_activations else None,
        )
        out_TF = F.linear(normed_TD, weight_FD, bias_F)
        return out_TF if update_TD is None else (y_TD, out_TF)

    @staticmethod
    def backward(ctx: Context, *grads: torch.Tensor) -> Gradients:
        y_TD, update_TD, gamma_D, factor_B, segment_T, nw_D, nb_D, weight_FD, bias_F, normed_TD = (
            ctx.saved_tensors
        )
        grad_y_TD = None if ctx.dtypes[1] is None else grads[0]
        grad_TF = grads[-1]
        if normed_TD is None and ctx.kernels:
            nothing = (None, None, None, None)
            normed_TD = residual_norm_op(y_TD, *nothing, nw_D, nb_D, ctx.eps, weight_FD.dtype)[1]
        elif normed_TD is None:
            normed_TD = rounded_norm(y_TD, nw_D, nb_D, ctx.eps, weight_FD.dtype)
        grad_weight, grad_bias = _weight_gradients(ctx, grad_TF, normed_TD, bias_F, 8)
        grad_normed_TD = grad_TF @ weight_FD
        residual = (update_TD, gamma_D, factor_B, segment_T)
        if ctx.kernels:
            dx, du, dgamma, dw, db = gradients_of(
                grad_y_TD, grad_normed_TD, y_TD, *residual, nw_D, ctx.eps, ctx.dtypes
            )
        else:
            dx, dw, db = norm_gradients(grad_y_TD, grad_normed_TD, y_TD, nw_D, nb_D, ctx.eps)
            du, dgamma = residual_gradients(dx, *residual, ctx.dtypes[1])
            dx = dx.to(ctx.dtypes[0])
        return dx, du, dgamma, None, None, dw, db, None, grad_weight, grad_bias, None, None


class GeluLinear(torch.autograd.Function):
    """Linear layer on GELU(first columns + bias), and views of the other columns."""

    @staticmethod
    def forward(
        ctx: Context,
        fused_TF: torch.Tensor,
        bias_h: Maybe,
        widths: tuple[int, ...],
        weight_Dh: torch.Tensor,
        bias_D: Maybe,
        save_activations: bool,
        kernels: bool,
    ) -> tuple[torch.Tensor, ...]:
        if kernels:
            act_Th = gelu_columns_op(fused_TF, bias_h, widths[0])
        else:
            act_Th = gelu_split_reference(fused_TF, bias_h, widths)[0].to(weight_Dh.dtype)
        ctx.widths, ctx.kernels = widths, kernels
        ctx.save_for_backward(fused_TF, bias_h, weight_Dh, bias_D, act_Th if save_activations else None)
        _, *rest = fused_TF.split(list(widths), dim=1)
        return F.linear(act_Th, weight_Dh, bias_D), *rest

    @staticmethod
    def backward(ctx: Context, *grads: torch.Tensor) -> Gradients:
        grad_TD, *grad_rest = grads
        fused_TF, bias_h, weight_Dh, bias_D, act_Th = ctx.saved_tensors
        grad_act_Th = grad_TD @ weight_Dh
        if ctx.kernels:
            again = fused_TF.new_empty(grad_act_Th.shape) if act_Th is None else None
            grad_fused, grad_bias_h = fused_gradient(
                grad_act_Th, grad_rest, fused_TF, bias_h, ctx.widths, again
            )
        else:
            again, grad_first, grad_bias_h = gelu_gradients(grad_act_Th, fused_TF[:, : ctx.widths[0]], bias_h)
            grad_fused = torch.cat([grad_first, *grad_rest], 1)
        inputs = act_Th if again is None else again
        grad_weight, grad_bias = _weight_gradients(ctx, grad_TD, inputs, bias_D, 3)
        return grad_fused, grad_bias_h, None, grad_weight, grad_bias, None, None
