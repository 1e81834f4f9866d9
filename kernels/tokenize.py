"""tokenize: planes in their stored dtype -> standardised, projected visible tokens, packed by sample."""

from __future__ import annotations

import torch

from camae.errors import CamaeError
from camae.kernels.backends import Backend, choose, reference_backend
from camae.kernels.planes import check_planes, patch_side, plane_statistics, standardised_patches

__all__ = ["backends", "plane_statistics", "token_cu_seqlens", "tokenize", "tokenize_reference"]


def count_samples(sample_K: torch.Tensor) -> int:
    """B from the non-decreasing sample_K (reads one value back from a device)."""
    return int(sample_K[-1]) + 1 if len(sample_K) else 0


def token_cu_seqlens(
    sample_K: torch.Tensor, keep_index: torch.Tensor | None, n_patches: int, n_samples: int | None = None
) -> torch.Tensor:
    """(B + 1,) int32: where each sample's tokens begin, its class token first.

    sample_K:   (K,) int64 non-decreasing.
    keep_index: (V,) int64 ascending flat indices plane * n_patches + patch, or None when all are visible.
    """
    B = count_samples(sample_K) if n_samples is None else n_samples
    if keep_index is None:
        kept_B = torch.bincount(sample_K, minlength=B) * n_patches
    else:
        kept_B = torch.bincount(sample_K[keep_index // n_patches], minlength=B)
    return torch.cat((kept_B.new_zeros(1), (kept_B + 1).cumsum(0))).to(torch.int32)


def tokenize_reference(
    planes_KHW: torch.Tensor,
    sample_K: torch.Tensor,
    keep_index: torch.Tensor | None,
    weight_DP2: torch.Tensor,
    bias_D: torch.Tensor,
    pos_ND: torch.Tensor,
    cls_D: torch.Tensor,
    *,
    eps: float,
    n_samples: int | None = None,
) -> torch.Tensor:
    """The op in plain torch; computes in fp64 for fp64 weights, else standardises in fp32."""
    D, P2 = weight_DP2.shape
    P, N = patch_side(P2), pos_ND.shape[0]
    B = count_samples(sample_K) if n_samples is None else n_samples
    device = planes_KHW.device
    if keep_index is None:
        keep_index = torch.arange(planes_KHW.shape[0] * N, device=device)
    plane_V, patch_V = keep_index // N, keep_index % N
    compute = torch.float64 if weight_DP2.dtype == torch.float64 else torch.float32
    x_VP2 = standardised_patches(planes_KHW, plane_V, patch_V, P, eps, compute).to(weight_DP2.dtype)
    tokens_VD = torch.nn.functional.linear(x_VP2, weight_DP2, bias_D)
    tokens_VD = tokens_VD + pos_ND[patch_V].to(tokens_VD.dtype)
    sample_V = sample_K[plane_V]
    rows_V = torch.arange(len(keep_index), device=device) + sample_V + 1
    # Sample b's class token stands after the patches and class tokens of the samples before it.
    class_rows_B = torch.searchsorted(sample_V, torch.arange(B, device=device)) + torch.arange(
        B, device=device
    )
    packed_TD = tokens_VD.new_zeros(len(keep_index) + B, D)
    packed_TD = packed_TD.index_copy(0, rows_V, tokens_VD)
    return packed_TD.index_copy(0, class_rows_B, cls_D.to(tokens_VD.dtype).expand(B, D))


def backends(device: torch.device | str = "cpu") -> tuple[Backend, ...]:
    """The op's back-ends on `device`, the default first."""
    return (reference_backend(),)


def tokenize(
    planes_KHW: torch.Tensor,
    sample_K: torch.Tensor,
    keep_index: torch.Tensor | None,
    weight_DP2: torch.Tensor,
    bias_D: torch.Tensor,
    pos_ND: torch.Tensor,
    cls_D: torch.Tensor,
    *,
    eps: float,
    n_samples: int | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Visible tokens (V + B, D), packed by sample with the class token first in each.

    planes_KHW: (K, H, W) uint8, uint16 or float32, stored values; each standardised over itself.
    sample_K:   (K,) int64 non-decreasing, the sample of each plane.
    keep_index: (V,) int64 ascending flat indices plane * N + patch of visible tokens; None: all K*N.
    weight_DP2: (D, P*P) projection, bias_D: (D,), pos_ND: (N, D) positions, cls_D: (D,) class token.
    eps:        in stored values, added to the standard deviation in quadrature.
    n_samples:  B, where the caller knows it; else read back from sample_K.

    Differentiable in weight, bias, positions and class token. Raises CamaeError for shapes that do not fit,
    MissingBackendError for a back-end that cannot run here.
    """
    P, N = patch_side(weight_DP2.shape[1]), pos_ND.shape[0]
    check_planes(planes_KHW, P)
    grid = (planes_KHW.shape[1] // P) * (planes_KHW.shape[2] // P)
    if grid != N:
        raise CamaeError(f"planes have {grid} patches of {P} px but the position table has {N} rows")
    available = backends(planes_KHW.device)
    choose("tokenize", backend, available, available[0].name)
    return tokenize_reference(
        planes_KHW, sample_K, keep_index, weight_DP2, bias_D, pos_ND, cls_D, eps=eps, n_samples=n_samples
    )
