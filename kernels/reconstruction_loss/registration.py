"""torch.library op of `reconstruction_loss`: schema, formula, Triton kernel, fake and gradient."""

from __future__ import annotations

import torch

from camae.kernels._autograd import Context, Gradients, Inputs
from camae.kernels._device import accumulation_dtype
from camae.kernels._kernel_op import KernelOp
from camae.kernels.patches import patch_side, standardized_patches
from camae.kernels.reconstruction_loss.reference import loss_and_gradient

Losses = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@torch.library.custom_op("camae::reconstruction_loss", mutates_args=())
def _reconstruction_loss(
    pred_MP2: torch.Tensor,
    planes_KHW: torch.Tensor,
    plane_M: torch.Tensor,
    patch_M: torch.Tensor,
    weight_M: torch.Tensor,
    mean_K: torch.Tensor,
    var_K: torch.Tensor,
    eps: float,
    alpha: float,
) -> Losses:
    """total (), parts (2,), gradient (M, P*P) in the prediction's dtype."""
    compute = accumulation_dtype(pred_MP2)
    target_MP2 = standardized_patches(
        planes_KHW, plane_M, patch_M, patch_side(pred_MP2.shape[1]), eps, compute, (mean_K, var_K)
    )
    parts, grad_MP2 = loss_and_gradient(pred_MP2.to(compute), target_MP2, weight_M.to(compute), alpha)
    return (1 - alpha) * parts[0] + alpha * parts[1], parts, grad_MP2.to(pred_MP2.dtype).contiguous()


@_reconstruction_loss.register_fake
def _(
    pred_MP2: torch.Tensor,
    planes_KHW: torch.Tensor,
    plane_M: torch.Tensor,
    patch_M: torch.Tensor,
    weight_M: torch.Tensor,
    mean_K: torch.Tensor,
    var_K: torch.Tensor,
    eps: float,
    alpha: float,
) -> Losses:
    compute = accumulation_dtype(pred_MP2)
    return (
        pred_MP2.new_empty((), dtype=compute),
        pred_MP2.new_empty(2, dtype=compute),
        pred_MP2.new_empty(pred_MP2.shape),
    )


def _setup_context(ctx: Context, inputs: Inputs, output: Losses) -> None:
    ctx.save_for_backward(output[2])
    ctx.mark_non_differentiable(output[1], output[2])


def _backward(ctx: Context, grad_total: torch.Tensor, *_: torch.Tensor) -> Gradients:
    (grad_MP2,) = ctx.saved_tensors
    return (grad_MP2 * grad_total.to(grad_MP2.dtype), *(None,) * 8)


reconstruction_loss_op = KernelOp(
    _reconstruction_loss,
    "camae.kernels.reconstruction_loss.triton",
    "reconstruction_loss",
    _setup_context,
    _backward,
)


class ReferenceLoss(torch.autograd.Function):
    """The back-end `reference`: total () and parts (2,), the gradient found in the forward pass."""

    @staticmethod
    def forward(
        ctx: Context, pred_MP2: torch.Tensor, target_MP2: torch.Tensor, weight_M: torch.Tensor, alpha: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        parts, grad_MP2 = loss_and_gradient(pred_MP2, target_MP2, weight_M, alpha)
        ctx.save_for_backward(grad_MP2)
        ctx.mark_non_differentiable(parts)
        return (1 - alpha) * parts[0] + alpha * parts[1], parts

    @staticmethod
    def backward(ctx: Context, *grads: torch.Tensor) -> Gradients:
        (grad_MP2,) = ctx.saved_tensors
        return grad_MP2 * grads[0], None, None, None
