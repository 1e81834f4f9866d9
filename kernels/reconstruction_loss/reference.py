"""Plain-torch form of `reconstruction_loss`: losses per patch, and the loss with its gradient by formula."""

from __future__ import annotations

import torch

from camae.kernels.patches import patch_side


def rounding_level(pred_MP2: torch.Tensor) -> torch.Tensor:
    """(M, 1, 1) magnitudes at or below this are rounding noise and count as 0: |F| <= sum |x|, four roundings."""
    return 4 * torch.finfo(pred_MP2.dtype).eps * pred_MP2.abs().sum(1)[:, None, None]


def column_multiplicity(P: int, like: torch.Tensor) -> torch.Tensor:
    """(P/2 + 1,) how often each column of half a spectrum stands in the whole one of a real patch."""
    multiplicity = torch.full((P // 2 + 1,), 2.0, dtype=like.dtype, device=like.device)
    multiplicity[0] = 1
    if P % 2 == 0:
        multiplicity[-1] = 1
    return multiplicity


def magnitudes(spectrum: torch.Tensor) -> torch.Tensor:
    """|F| of a complex tensor. A third of the time of torch's complex abs, which guards against squares that overflow;
    those of standardized patches are far from that.
    """
    real, imaginary = torch.view_as_real(spectrum).unbind(-1)
    return real.square().addcmul_(imaginary, imaginary).sqrt_()


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
    l1_MPF = (magnitude_pred - magnitude_target).abs() * column_multiplicity(P, pred_MP2)
    return mse_M, l1_MPF.sum((1, 2)) / (P * P)


def loss_and_gradient(
    pred_MP2: torch.Tensor,
    target_MP2: torch.Tensor,
    weight_M: torch.Tensor,
    alpha: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted MSE and Fourier sums (2,) and the gradient (M, P*P) in plain torch, as the kernel returns them.

    d|F|/dx is the real part of the inverse transform of the phase, and phases of a real patch are Hermitian as its
    spectrum is: half a spectrum there and back, where autograd takes a whole complex one.
    """
    P = patch_side(pred_MP2.shape[1])
    if len(pred_MP2) == 0:
        return pred_MP2.new_zeros(2), torch.zeros_like(pred_MP2)
    difference_MP2 = pred_MP2 - target_MP2
    spectrum = torch.fft.rfft2(pred_MP2.unflatten(1, (P, P)))
    magnitude = magnitudes(spectrum)
    loud = magnitude > rounding_level(pred_MP2)
    excess = torch.where(loud, magnitude, 0) - magnitudes(torch.fft.rfft2(target_MP2.unflatten(1, (P, P))))
    slope = torch.where(loud, excess.sign() / magnitude, 0) * spectrum
    slope_MP2 = torch.fft.irfft2(slope, s=(P, P), norm="forward").flatten(1)
    mse_M = difference_MP2.square().mean(1)
    fourier_M = (excess.abs() * column_multiplicity(P, pred_MP2)).sum((1, 2)) / (P * P)
    grad_MP2 = difference_MP2.mul_(2 * (1 - alpha)).add_(slope_MP2, alpha=alpha)
    parts = torch.stack([(mse_M * weight_M).sum(), (fourier_M * weight_M).sum()])
    return parts, grad_MP2.mul_((weight_M / (P * P))[:, None])
