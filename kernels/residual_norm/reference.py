"""Plain-torch form of `residual_norm`, and its gradient by formula."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from camae.kernels._autograd import Maybe


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


def residual_norm_gradients(
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
