"""reconstruction_loss: MSE + L1 of Fourier magnitudes of masked, self-standardised patches (Eq. 3)."""

from __future__ import annotations

import torch

from camae.errors import CamaeError
from camae.kernels.backends import Backend, choose, reference_backend
from camae.kernels.planes import check_planes, default_eps, patch_side, standardised_patches


def fourier_weights(patch: int, like: torch.Tensor) -> torch.Tensor:
    """(P // 2 + 1,) how often each column of the real half spectrum stands in the full one."""
    weights = torch.full((patch // 2 + 1,), 2.0, dtype=like.dtype, device=like.device)
    weights[0] = 1
    if patch % 2 == 0:
        weights[-1] = 1
    return weights


def patch_losses_reference(
    pred_MP2: torch.Tensor, target_MP2: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per patch, (M,) each: MSE over its pixels; L1 of Fourier magnitudes, mean over P*P frequencies.

    |F| = 0 gets gradient 0 (the derivative of torch's complex abs).
    """
    P = patch_side(pred_MP2.shape[1])
    mse_M = (pred_MP2 - target_MP2).square().mean(1)
    magnitude_pred = torch.fft.rfft2(pred_MP2.unflatten(1, (P, P))).abs()
    magnitude_target = torch.fft.rfft2(target_MP2.unflatten(1, (P, P))).abs()
    l1_MPF = (magnitude_pred - magnitude_target).abs() * fourier_weights(P, pred_MP2)
    return mse_M, l1_MPF.sum((1, 2)) / (P * P)


def reconstruction_parts_reference(
    pred_MP2: torch.Tensor,
    planes_KHW: torch.Tensor,
    plane_M: torch.Tensor,
    patch_M: torch.Tensor,
    weight_M: torch.Tensor,
    *,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted sums over patches of MSE and Fourier L1, in fp64 for fp64 predictions, else in fp32."""
    P = patch_side(pred_MP2.shape[1])
    compute = torch.float64 if pred_MP2.dtype == torch.float64 else torch.float32
    target_MP2 = standardised_patches(planes_KHW, plane_M, patch_M, P, eps, compute)
    mse_M, fourier_M = patch_losses_reference(pred_MP2.to(compute), target_MP2)
    weight_M = weight_M.to(compute)
    return (mse_M * weight_M).sum(), (fourier_M * weight_M).sum()


def backends(device: torch.device | str = "cpu") -> tuple[Backend, ...]:
    """The op's back-ends on `device`, the default first."""
    return (reference_backend(),)


def reconstruction_losses(
    pred_MP2: torch.Tensor,
    planes_KHW: torch.Tensor,
    plane_M: torch.Tensor,
    patch_M: torch.Tensor,
    alpha: float,
    *,
    eps: float | None = None,
    weight_M: torch.Tensor | None = None,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(total, mse, fourier): the loss, differentiable in the prediction, and its parts, detached, for logging.

    Arguments as in `reconstruction_loss`.
    """
    P = patch_side(pred_MP2.shape[1])
    check_planes(planes_KHW, P)
    M = pred_MP2.shape[0]
    if plane_M.shape != (M,) or patch_M.shape != (M,) or (weight_M is not None and weight_M.shape != (M,)):
        raise CamaeError(f"{M} predicted patches need {M} plane and patch indices (and weights)")
    available = backends(planes_KHW.device)
    choose("reconstruction_loss", backend, available, available[0].name)
    if weight_M is None:
        weight_M = torch.full((M,), 1 / max(M, 1), dtype=torch.float32, device=pred_MP2.device)
        weight_M = weight_M.double() if pred_MP2.dtype == torch.float64 else weight_M
    mse, fourier = reconstruction_parts_reference(
        pred_MP2, planes_KHW, plane_M, patch_M, weight_M, eps=default_eps(planes_KHW, eps)
    )
    return (1 - alpha) * mse + alpha * fourier, mse.detach(), fourier.detach()


def reconstruction_loss(
    pred_MP2: torch.Tensor,
    planes_KHW: torch.Tensor,
    plane_M: torch.Tensor,
    patch_M: torch.Tensor,
    alpha: float,
    *,
    eps: float | None = None,
    weight_M: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """(1 - alpha) * MSE + alpha * Fourier L1 of the masked patches, a scalar (fp64 for fp64 predictions, else fp32).

    pred_MP2:   (M, P*P) predicted pixels of the self-standardised plane, any float dtype.
    planes_KHW: (K, H, W) uint8, uint16 or float32, stored values.
    plane_M, patch_M: (M,) int64, plane and row-major patch within the plane of every prediction.
    eps:        of the standardisation, in stored values; None: 1e-3 grey levels for integer planes.
    weight_M:   (M,) weight of every patch; None: 1 / M. The loss is the weighted sum, so that a mean per
                sample and then over samples, or a global count, is a choice of weights.

    Source: Kraus et al., Eqs. 1-3: per patch, the mean square over pixels and the mean over P*P frequencies
    of | |F(y)| - |F(y')| | with the unnormalised 2-D transform of the patch.
    """
    return reconstruction_losses(
        pred_MP2, planes_KHW, plane_M, patch_M, alpha, eps=eps, weight_M=weight_M, backend=backend
    )[0]
