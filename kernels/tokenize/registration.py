"""torch.library ops of `tokenize`: schema, formula, Triton kernel, fake and gradient."""

from __future__ import annotations

import torch

from camae.kernels._autograd import Context, Gradients, Inputs
from camae.kernels._device import accumulation_dtype
from camae.kernels._kernel_op import KernelOp
from camae.kernels.patches import patch_side, plane_statistics_reference
from camae.kernels.tokenize.reference import (
    samples_of_patches,
    token_cu_seqlens,
    tokenize_reference,
    weight_gradient_reference,
)

TRITON = "camae.kernels.tokenize.triton"


@torch.library.custom_op("camae::plane_statistics", mutates_args=())
def _plane_statistics(planes_KHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance of every plane, (K,) float64 each."""
    return plane_statistics_reference(planes_KHW)


@_plane_statistics.register_fake
def _(planes_KHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean_K = planes_KHW.new_empty(planes_KHW.shape[0], dtype=torch.float64)
    return mean_K, torch.empty_like(mean_K)


@torch.library.custom_op("camae::tokenize", mutates_args=())
def _tokenize(
    planes_KHW: torch.Tensor,
    sample_K: torch.Tensor,
    keep_index: torch.Tensor | None,
    weight_DP2: torch.Tensor,
    bias_D: torch.Tensor,
    pos_ND: torch.Tensor,
    cls_D: torch.Tensor,
    mean_K: torch.Tensor,
    var_K: torch.Tensor,
    eps: float,
    n_samples: int,
) -> torch.Tensor:
    """Visible tokens (V + B, D): arguments as in `tokenize`."""
    arguments = (planes_KHW, sample_K, keep_index, weight_DP2, bias_D, pos_ND, cls_D, mean_K, var_K)
    return tokenize_reference(*arguments, eps, n_samples)


@_tokenize.register_fake
def _(
    planes_KHW: torch.Tensor,
    sample_K: torch.Tensor,
    keep_index: torch.Tensor | None,
    weight_DP2: torch.Tensor,
    bias_D: torch.Tensor,
    pos_ND: torch.Tensor,
    cls_D: torch.Tensor,
    mean_K: torch.Tensor,
    var_K: torch.Tensor,
    eps: float,
    n_samples: int,
) -> torch.Tensor:
    V = planes_KHW.shape[0] * pos_ND.shape[0] if keep_index is None else keep_index.shape[0]
    return weight_DP2.new_empty(V + n_samples, weight_DP2.shape[0])


@torch.library.custom_op("camae::tokenize_weight_gradient", mutates_args=())
def _weight_gradient(
    planes_KHW: torch.Tensor,
    sample_K: torch.Tensor,
    keep_index: torch.Tensor | None,
    grad_TD: torch.Tensor,
    mean_K: torch.Tensor,
    var_K: torch.Tensor,
    eps: float,
    n_patches: int,
    patch: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of weight (D, P*P) and bias (D,)."""
    return weight_gradient_reference(
        planes_KHW, sample_K, keep_index, grad_TD, mean_K, var_K, eps, n_patches, patch
    )


@_weight_gradient.register_fake
def _(
    planes_KHW: torch.Tensor,
    sample_K: torch.Tensor,
    keep_index: torch.Tensor | None,
    grad_TD: torch.Tensor,
    mean_K: torch.Tensor,
    var_K: torch.Tensor,
    eps: float,
    n_patches: int,
    patch: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    compute = accumulation_dtype(grad_TD)
    D = grad_TD.shape[1]
    return grad_TD.new_empty(D, patch**2, dtype=compute), grad_TD.new_empty(D, dtype=compute)


def _setup_context(ctx: Context, inputs: Inputs, output: torch.Tensor) -> None:
    planes, sample, keep, weight, bias, pos, cls, mean, var, eps, n_samples = inputs
    ctx.save_for_backward(planes, sample, keep, mean, var)
    ctx.eps, ctx.n_samples, ctx.pos_shape = eps, n_samples, pos.shape
    ctx.dtypes = (weight.dtype, bias.dtype, pos.dtype, cls.dtype)
    ctx.patch = patch_side(weight.shape[1])


def _backward(ctx: Context, grad_TD: torch.Tensor) -> Gradients:
    planes_KHW, sample_K, keep_index, mean_K, var_K = ctx.saved_tensors
    needs_weight, needs_bias, needs_pos, needs_cls = ctx.needs_input_grad[3:7]
    weight_dtype, bias_dtype, pos_dtype, cls_dtype = ctx.dtypes
    N = ctx.pos_shape[0]
    weight = bias = pos = cls = None
    if needs_weight or needs_bias:
        weight, bias = weight_gradient_op(
            planes_KHW, sample_K, keep_index, grad_TD, mean_K, var_K, ctx.eps, N, ctx.patch
        )
        weight, bias = weight.to(weight_dtype), bias.to(bias_dtype)
    compute = accumulation_dtype(grad_TD)
    if needs_pos:
        sample_V = samples_of_patches(sample_K, keep_index, N)
        rows_V = torch.arange(len(sample_V), device=sample_V.device)
        patch_V = (rows_V if keep_index is None else keep_index) % N
        grad_VD = grad_TD[rows_V + sample_V + 1].to(compute)
        pos = grad_VD.new_zeros(ctx.pos_shape).index_add(0, patch_V, grad_VD).to(pos_dtype)
    if needs_cls:
        class_rows_B = token_cu_seqlens(sample_K, keep_index, N, ctx.n_samples)[:-1].long()
        cls = grad_TD[class_rows_B].to(compute).sum(0).to(cls_dtype)
    return None, None, None, weight, bias, pos, cls, None, None, None, None


plane_statistics_op = KernelOp(_plane_statistics, TRITON, "plane_statistics")
tokenize_op = KernelOp(_tokenize, TRITON, "tokenize", _setup_context, _backward)
weight_gradient_op = KernelOp(_weight_gradient, TRITON, "weight_gradient")
