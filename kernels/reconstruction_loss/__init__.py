"""reconstruction_loss: MSE + L1 of Fourier magnitudes of masked, self-standardized patches (paper, Eqs. 1-3).

Floor: M*P^2 predictions read, gradients written and stored pixels read (5 bytes each in bf16 on uint8 planes);
three transforms of every patch (prediction, target, adjoint of the gradient).
The gradient with respect to the prediction is computed in the same pass; no target reaches memory.
"""

from __future__ import annotations

import torch

from camae.errors import CamaeError
from camae.kernels import _dispatch
from camae.kernels._device import accumulation_dtype
from camae.kernels.patches import check_planes, default_eps, patch_side, standardized_patches
from camae.kernels.reconstruction_loss.reference import patch_losses_reference
from camae.kernels.reconstruction_loss.registration import Losses, ReferenceLoss, reconstruction_loss_op
from camae.kernels.tokenize import plane_statistics

__all__ = ["backends", "patch_losses_reference", "reconstruction_loss", "reconstruction_losses"]


def backends(device: torch.device | str = "cpu") -> tuple[_dispatch.Backend, ...]:
    """The op's back-ends and whether each can run on `device`. Kernels exist for P = 8 and 16."""
    return _dispatch.backends_of("reconstruction_loss", device)


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
    name = _dispatch.choose("reconstruction_loss", backend, device, size=P)
    _dispatch.check_patch("reconstruction_loss", name, P)
    if statistics is None:
        statistics = plane_statistics(planes_KHW, backend=name)
    compute = accumulation_dtype(pred_MP2)
    if weight_M is None:
        weight_M = torch.full((M,), 1 / max(M, 1), dtype=compute, device=device)
    weight_M = weight_M.to(compute)
    if name == "triton":
        total, parts, _ = reconstruction_loss_op(
            pred_MP2.contiguous(),
            planes_KHW.contiguous(),
            plane_M.contiguous(),
            patch_M.contiguous(),
            weight_M.contiguous(),
            *(x.contiguous() for x in statistics),
            eps,
            alpha,
        )
        return total, *parts.unbind()
    target_MP2 = standardized_patches(planes_KHW, plane_M, patch_M, P, eps, compute, statistics)
    total, parts = ReferenceLoss.apply(pred_MP2.to(compute), target_MP2, weight_M, alpha)
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
