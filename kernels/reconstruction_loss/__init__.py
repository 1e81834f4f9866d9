"""reconstruction_loss: MSE + L1 of Fourier magnitudes of masked, self-standardized patches (paper, Eqs. 1-3).

Floor: M*P^2 predictions read, gradients written and stored pixels read (5 bytes each in bf16 on uint8 planes);
three transforms of every patch (prediction, target, adjoint of the gradient).
The gradient with respect to the prediction is computed in the same pass; no target reaches memory.
"""

from __future__ import annotations

from typing import Any

import torch

from camae.errors import CamaeError
from camae.kernels._dispatch import (
    Backend,
    choose,
    default_backend,
    interpreting,
    reference_backend,
    triton_backend,
)
from camae.kernels._patches import check_planes, default_eps, patch_side, standardized_patches
from camae.kernels.tokenize import plane_statistics

KERNEL_PATCHES = (8, 16)
Losses = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def rounding_level(pred_MP2: torch.Tensor) -> torch.Tensor:
    """(M, 1, 1) magnitudes at or below this are rounding noise and count as 0: |F| <= sum |x|, four roundings."""
    return 4 * torch.finfo(pred_MP2.dtype).eps * pred_MP2.abs().sum(1)[:, None, None]


def _columns(P: int, like: torch.Tensor) -> torch.Tensor:
    """(P/2 + 1,) how often each column of half a spectrum stands in the whole one of a real patch."""
    often = torch.full((P // 2 + 1,), 2.0, dtype=like.dtype, device=like.device)
    often[0] = 1
    if P % 2 == 0:
        often[-1] = 1
    return often


def patch_losses_reference(
    pred_MP2: torch.Tensor, target_MP2: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per patch, (M,) each: MSE over its pixels; L1 of Fourier magnitudes, mean over P*P frequencies.

    Differentiable; a magnitude of 0 gets gradient 0 (the derivative of torch's complex abs).
    """
    P = patch_side(pred_MP2.shape[1])
    mse_M = (pred_MP2 - target_MP2).square().mean(1)
    if len(pred_MP2) == 0:  # a transform of nothing is an error in MKL
        return mse_M, mse_M
    magnitude_pred = torch.fft.rfft2(pred_MP2.unflatten(1, (P, P))).abs()
    magnitude_pred = torch.where(magnitude_pred > rounding_level(pred_MP2), magnitude_pred, 0)
    magnitude_target = torch.fft.rfft2(target_MP2.unflatten(1, (P, P))).abs()
    l1_MPF = (magnitude_pred - magnitude_target).abs() * _columns(P, pred_MP2)
    return mse_M, l1_MPF.sum((1, 2)) / (P * P)


def loss_and_gradient(
    pred_MP2: torch.Tensor,
    target_MP2: torch.Tensor,
    weight_M: torch.Tensor,
    alpha: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the kernel returns, in plain torch: (2,) weighted MSE and Fourier sums, and the gradient (M, P*P).

    d|F|/dx is the real part of the inverse transform of the phase, and phases of a real patch are Hermitian as its
    spectrum is: half a spectrum there and back, where autograd takes a whole complex one.
    """
    P = patch_side(pred_MP2.shape[1])
    if len(pred_MP2) == 0:
        return pred_MP2.new_zeros(2), torch.zeros_like(pred_MP2)
    difference_MP2 = pred_MP2 - target_MP2
    spectrum = torch.fft.rfft2(pred_MP2.unflatten(1, (P, P)))
    magnitude = spectrum.abs()
    loud = magnitude > rounding_level(pred_MP2)
    excess = torch.where(loud, magnitude, 0) - torch.fft.rfft2(target_MP2.unflatten(1, (P, P))).abs()
    slope = torch.where(loud, excess.sign() / magnitude, 0) * spectrum
    slope_MP2 = torch.fft.irfft2(slope, s=(P, P), norm="forward").flatten(1)
    mse_M = difference_MP2.square().mean(1)
    fourier_M = (excess.abs() * _columns(P, pred_MP2)).sum((1, 2)) / (P * P)
    grad_MP2 = difference_MP2.mul_(2 * (1 - alpha)).add_(slope_MP2, alpha=alpha)
    parts = torch.stack([(mse_M * weight_M).sum(), (fourier_M * weight_M).sum()])
    return parts, grad_MP2.mul_((weight_M / (P * P))[:, None])


@torch.library.custom_op("camae::reconstruction_loss", mutates_args=())
def _loss_op(
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
    if pred_MP2.is_cuda or interpreting():
        from camae.kernels.reconstruction_loss import triton as reconstruction_loss_triton

        parts, grad_MP2 = reconstruction_loss_triton.reconstruction_loss(
            pred_MP2, planes_KHW, plane_M, patch_M, weight_M, mean_K, var_K, eps, alpha
        )
    else:
        compute = compute_dtype(pred_MP2)
        target_MP2 = standardized_patches(
            planes_KHW, plane_M, patch_M, patch_side(pred_MP2.shape[1]), eps, compute, (mean_K, var_K)
        )
        parts, grad_MP2 = loss_and_gradient(pred_MP2.to(compute), target_MP2, weight_M.to(compute), alpha)
    return (1 - alpha) * parts[0] + alpha * parts[1], parts, grad_MP2.to(pred_MP2.dtype).contiguous()


@_loss_op.register_fake
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
    compute = compute_dtype(pred_MP2)
    return (
        pred_MP2.new_empty((), dtype=compute),
        pred_MP2.new_empty(2, dtype=compute),
        pred_MP2.new_empty(pred_MP2.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Losses) -> None:
    ctx.save_for_backward(output[2])
    ctx.mark_non_differentiable(output[1], output[2])


def _backward(ctx: Any, grad_total: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
    (grad_MP2,) = ctx.saved_tensors
    return (grad_MP2 * grad_total.to(grad_MP2.dtype), *(None,) * 8)


_loss_op.register_autograd(_backward, setup_context=_setup_context)


class _PlainLoss(torch.autograd.Function):
    """The back-end `reference`: total () and parts (2,), the gradient found in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, pred_MP2: torch.Tensor, target_MP2: torch.Tensor, weight_M: torch.Tensor, alpha: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        parts, grad_MP2 = loss_and_gradient(pred_MP2, target_MP2, weight_M, alpha)
        ctx.save_for_backward(grad_MP2)
        ctx.mark_non_differentiable(parts)
        return (1 - alpha) * parts[0] + alpha * parts[1], parts

    @staticmethod
    def backward(ctx: Any, grad_total: torch.Tensor, _: Any) -> Any:  # type: ignore[override]
        (grad_MP2,) = ctx.saved_tensors
        return grad_MP2 * grad_total, None, None, None


def compute_dtype(pred_MP2: torch.Tensor) -> torch.dtype:
    """fp64 for fp64 predictions, else fp32."""
    return torch.float64 if pred_MP2.dtype == torch.float64 else torch.float32


def backends(device: torch.device | str = "cpu") -> tuple[Backend, ...]:
    """The op's back-ends and whether each can run on `device`. Kernels exist for P = 8 and 16."""
    return (triton_backend(device), reference_backend())


def reconstruction_losses(
    pred_MP2: torch.Tensor,
    planes_KHW: torch.Tensor,
    plane_M: torch.Tensor,
    patch_M: torch.Tensor,
    alpha: float,
    *,
    eps: float | None = None,
    weight_M: torch.Tensor | None = None,
    statistics: tuple[torch.Tensor, torch.Tensor] | None = None,
    backend: str | None = None,
) -> Losses:
    """(total, mse, fourier): the loss, differentiable in the prediction, and its parts, detached, for logs.

    Arguments as in `reconstruction_loss`.
    """
    P, M, device = patch_side(pred_MP2.shape[1]), pred_MP2.shape[0], planes_KHW.device
    check_planes(planes_KHW, P)
    if plane_M.shape != (M,) or patch_M.shape != (M,) or (weight_M is not None and weight_M.shape != (M,)):
        raise CamaeError(f"{M} predicted patches need {M} plane and patch indices (and weights)")
    eps = default_eps(planes_KHW, eps)
    name = choose("reconstruction_loss", backend, backends(device), default_backend(device))
    if name == "triton" and P not in KERNEL_PATCHES:
        raise CamaeError(f"the loss kernel has patches of 8 and 16 px, not {P}; use backend='reference'")
    if statistics is None:
        statistics = plane_statistics(planes_KHW, backend=name)
    compute = compute_dtype(pred_MP2)
    if weight_M is None:
        weight_M = torch.full((M,), 1 / max(M, 1), dtype=compute, device=device)
    weight_M = weight_M.to(compute)
    if name == "triton":
        total, parts, _ = _loss_op(
            pred_MP2.contiguous(),
            planes_KHW.contiguous(),
            plane_M.contiguous(),
            patch_M.contiguous(),
            weight_M.contiguous(),
            *statistics,
            eps,
            alpha,
        )
        return total, *parts.unbind()
    target_MP2 = standardized_patches(planes_KHW, plane_M, patch_M, P, eps, compute, statistics)
    total, parts = _PlainLoss.apply(pred_MP2.to(compute), target_MP2, weight_M, alpha)
    return total, *parts.unbind()


def reconstruction_loss(
    pred_MP2: torch.Tensor,
    planes_KHW: torch.Tensor,
    plane_M: torch.Tensor,
    patch_M: torch.Tensor,
    alpha: float,
    *,
    eps: float | None = None,
    weight_M: torch.Tensor | None = None,
    statistics: tuple[torch.Tensor, torch.Tensor] | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """(1 - alpha) * MSE + alpha * Fourier L1 of masked patches, a scalar (fp64 for fp64 predictions, else fp32).

    pred_MP2:   (M, P*P) predicted pixels of the self-standardized plane, any float dtype.
    planes_KHW: (K, H, W) uint8, uint16 or float32, stored values.
    plane_M, patch_M: (M,) int64, plane and row-major patch within the plane of every prediction.
    eps:        of the standardization, in stored values; None: 1e-3 gray levels for integer planes.
    weight_M:   (M,) weight of every patch; None: 1 / M. The loss is the weighted sum, so that a mean per
                sample and then over samples, or a global count, is a choice of weights. No gradient.
    statistics: what `tokenize.plane_statistics` gave, where the caller has it.

    Source: Kraus et al., Eqs. 1-3: per patch, the mean square over pixels and the mean over P*P frequencies
    of | |F(y)| - |F(y')| | with the unnormalized 2-D transform of the patch.
    """
    return reconstruction_losses(
        pred_MP2,
        planes_KHW,
        plane_M,
        patch_M,
        alpha,
        eps=eps,
        weight_M=weight_M,
        statistics=statistics,
        backend=backend,
    )[0]
