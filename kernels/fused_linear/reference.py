"""Plain-torch gradients of `norm_linear` and `gelu_linear` where the memory-bound op is recomputed."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from camae.kernels._autograd import Maybe


def rounded_norm(
    y_TD: torch.Tensor, weight_D: torch.Tensor, bias_D: torch.Tensor, eps: float, dtype: torch.dtype
) -> torch.Tensor:
    """LayerNorm in the precision of its weight, rounded to the product's."""
    return F.layer_norm(y_TD.to(weight_D.dtype), weight_D.shape, weight_D, bias_D, eps).to(dtype)


def norm_gradients(
    grad_y_TD: Maybe,
    grad_normed_TD: torch.Tensor,
    y_TD: torch.Tensor,
    weight_D: torch.Tensor,
    bias_D: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    """Gradients of y (both branches), weight and bias, by torch's backward pass of a recomputed norm."""
    leaves = [t.detach().requires_grad_() for t in (y_TD, weight_D, bias_D)]
    with torch.enable_grad():
        again = rounded_norm(leaves[0], leaves[1], leaves[2], eps, grad_normed_TD.dtype)
    dy, dw, db = torch.autograd.grad(again, leaves, grad_normed_TD)
    return dy if grad_y_TD is None else dy + grad_y_TD, dw, db


def residual_gradients(
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
    if gamma_D is None or update_TD is None:  # the update is saved for gamma alone
        return g.to(dtype), None
    return (g * gamma_D).to(dtype), (g * update_TD).sum(0).to(gamma_D.dtype)


def gelu_gradients(
    grad_act_Th: torch.Tensor, first_Th: torch.Tensor, bias_h: Maybe
) -> tuple[torch.Tensor, torch.Tensor, Maybe]:
    """The recomputed activation, and gradients of the columns and the bias by torch's backward pass."""
    leaf = first_Th.detach().requires_grad_()
    bias = None if bias_h is None else bias_h.detach().requires_grad_()
    with torch.enable_grad():
        again = F.gelu(leaf if bias is None else leaf + bias).to(grad_act_Th.dtype)
    inputs = (leaf,) if bias is None else (leaf, bias)
    grads = torch.autograd.grad(again, inputs, grad_act_Th)
    return again.detach(), grads[0], None if bias is None else grads[1]
