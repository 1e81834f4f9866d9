"""LayerNorm of q and k over the head dim, before attention: for back-ends that do not have it inside."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from camae.kernels._autograd import Context, Gradients


class _HeadNorm(torch.autograd.Function):
    """LayerNorm over the head dim that saves its input as it came, without a copy in the norm's precision."""

    @staticmethod
    def forward(
        ctx: Context, x_THd: torch.Tensor, weight_d: torch.Tensor, bias_d: torch.Tensor, eps: float
    ) -> torch.Tensor:
        ctx.save_for_backward(x_THd, weight_d, bias_d)
        ctx.eps = eps
        return F.layer_norm(x_THd.to(weight_d.dtype), weight_d.shape, weight_d, bias_d, eps).to(x_THd.dtype)

    @staticmethod
    def backward(ctx: Context, *grads: torch.Tensor) -> Gradients:
        leaves = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        with torch.enable_grad():
            x_THd, weight_d, bias_d = leaves
            again = F.layer_norm(x_THd.to(weight_d.dtype), weight_d.shape, weight_d, bias_d, ctx.eps)
        return *torch.autograd.grad(again, leaves, grads[0].to(again.dtype)), None


def head_norm(x_THd: torch.Tensor, weight_d: torch.Tensor, bias_d: torch.Tensor, eps: float) -> torch.Tensor:
    """LayerNorm over the last dim, in the precision of the weight, given back in the dtype of x."""
    if x_THd.dtype == weight_d.dtype:
        return F.layer_norm(x_THd, weight_d.shape, weight_d, bias_d, eps)
    return _HeadNorm.apply(x_THd, weight_d, bias_d, eps)
