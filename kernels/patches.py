"""Image patches of planes: statistics, patch extraction and self-standardization in plain torch.

Planes are (K, H, W) in their stored dtype. The tokenizer (visible patches) and the reconstruction loss (masked
patches) standardize a plane over itself, (x - mean) / sqrt(var + eps^2), with the biased variance on stored values.
"""

from __future__ import annotations

import torch

from camae.errors import CamaeError

STORED_DTYPES = (torch.uint8, torch.uint16, torch.float32)


def check_planes(planes_KHW: torch.Tensor, patch: int) -> None:
    """Raise CamaeError unless planes are (K, H, W) of a stored dtype with sides that `patch` divides."""
    if planes_KHW.ndim != 3:
        raise CamaeError(f"planes must be (K, H, W), got shape {tuple(planes_KHW.shape)}")
    if planes_KHW.dtype not in STORED_DTYPES and not planes_KHW.dtype.is_floating_point:
        raise CamaeError(f"planes must be uint8, uint16 or float32, got {planes_KHW.dtype}")
    _, H, W = planes_KHW.shape
    if H % patch or W % patch:
        raise CamaeError(f"planes of {H} x {W} px are not a multiple of the patch, {patch} px")


def patch_side(pixels: int) -> int:
    """P from P*P. Raises CamaeError where it is not a square."""
    side = round(pixels**0.5)
    if side * side != pixels:
        raise CamaeError(f"patches of {pixels} pixels are not square")
    return side


def plane_statistics_reference(planes_KHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance of every plane, each (K,) float64.

    Two passes in fp64 over differences from the plane's first pixel, so that uint16 planes with mean 60,000
    and std 5 keep all their digits.
    """
    x_KL = planes_KHW.flatten(1).to(torch.float64)
    if x_KL.shape[0] == 0:
        return x_KL.new_zeros(0), x_KL.new_zeros(0)
    pivot_K1 = x_KL[:, :1]
    var_K, mean_K = torch.var_mean(x_KL - pivot_K1, dim=1, correction=0)
    return mean_K + pivot_K1.squeeze(1), var_K


def gather_patches(
    planes_KHW: torch.Tensor, plane_M: torch.Tensor, patch_M: torch.Tensor, patch: int
) -> torch.Tensor:
    """(M, P*P) patches in the stored dtype; patch_M counts row-major within a plane."""
    K, H, W = planes_KHW.shape
    grid_w = W // patch
    # torch has few ops for uint16, indexing not among them: move the same bits as int16.
    bits = planes_KHW.view(torch.int16) if planes_KHW.dtype == torch.uint16 else planes_KHW
    tiles = bits.reshape(K, H // patch, patch, grid_w, patch)
    rows = torch.div(patch_M, grid_w, rounding_mode="floor")
    out_MPP = tiles[plane_M, rows, :, patch_M % grid_w, :]
    return out_MPP.flatten(1).view(planes_KHW.dtype)


def planes_of_patches(patches_MP2: torch.Tensor, H: int, W: int) -> torch.Tensor:
    """Planes (K, H, W) of their patches (K*N, P*P), row-major within a plane: the inverse of `gather_patches`."""
    P = patch_side(patches_MP2.shape[1])
    tiles = patches_MP2.reshape(-1, H // P, W // P, P, P)
    return tiles.transpose(2, 3).reshape(-1, H, W)


def standardized_patches(
    planes_KHW: torch.Tensor,
    plane_M: torch.Tensor,
    patch_M: torch.Tensor,
    patch: int,
    eps: float,
    dtype: torch.dtype,
    statistics: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """(M, P*P) self-standardized patches in `dtype` (fp32 or fp64).

    The mean is subtracted in two parts, its rounding to `dtype` and the rest: the first subtraction is exact
    near the mean, so fp32 keeps the digits of a plane with mean 60,000 and std 5.
    """
    mean_K, var_K = plane_statistics_reference(planes_KHW) if statistics is None else statistics
    rstd_K = (var_K + eps**2).rsqrt().to(dtype)
    high_K = mean_K.to(dtype)
    low_K = (mean_K - high_K.to(mean_K.dtype)).to(dtype)
    x_MP2 = gather_patches(planes_KHW, plane_M, patch_M, patch).to(dtype)
    centered_MP2 = (x_MP2 - high_K[plane_M, None]) - low_K[plane_M, None]
    return centered_MP2 * rstd_K[plane_M, None]


def default_eps(planes_KHW: torch.Tensor, eps: float | None) -> float:
    """eps in stored values: 1e-3 gray levels for integer planes.

    Raises CamaeError for float planes without one: their unit is unknown.
    """
    if eps is not None:
        return eps
    if planes_KHW.dtype.is_floating_point:
        raise CamaeError("float planes need eps in their own unit (1e-6 of the value range)")
    return 1e-3
