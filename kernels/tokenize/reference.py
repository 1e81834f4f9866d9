"""Plain-torch form of `tokenize` and of its gradient, and the bookkeeping of packed tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from camae.kernels._device import accumulation_dtype
from camae.kernels.patches import patch_side, standardized_patches


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
    sample_V = samples_of_patches(sample_K, keep_index, n_patches)
    begins_B1 = torch.arange(B + 1, device=sample_K.device)
    return (torch.searchsorted(sample_V, begins_B1) + begins_B1).to(torch.int32)


def samples_of_patches(
    sample_K: torch.Tensor, keep_index: torch.Tensor | None, n_patches: int
) -> torch.Tensor:
    """(V,) the sample of every visible patch."""
    if keep_index is None:
        return sample_K.repeat_interleave(n_patches)
    return sample_K[keep_index // n_patches]


def tokenize_reference(
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
    """The op in plain torch; computes in fp64 for fp64 weights, else standardizes in fp32."""
    (D, P2), N, device = weight_DP2.shape, pos_ND.shape[0], planes_KHW.device
    keep_V = torch.arange(planes_KHW.shape[0] * N, device=device) if keep_index is None else keep_index
    compute = accumulation_dtype(weight_DP2)
    x_VP2 = standardized_patches(
        planes_KHW, keep_V // N, keep_V % N, patch_side(P2), eps, compute, (mean_K, var_K)
    )
    tokens_VD = F.linear(x_VP2.to(weight_DP2.dtype), weight_DP2, bias_D)
    tokens_VD = tokens_VD + pos_ND[keep_V % N].to(tokens_VD.dtype)
    sample_V = samples_of_patches(sample_K, keep_index, N)
    rows_V = torch.arange(len(keep_V), device=device) + sample_V + 1
    class_rows_B = token_cu_seqlens(sample_K, keep_index, N, n_samples)[:-1].long()
    packed_TD = tokens_VD.new_zeros(len(keep_V) + n_samples, D).index_copy(0, rows_V, tokens_VD)
    return packed_TD.index_copy(0, class_rows_B, cls_D.to(tokens_VD.dtype).expand(n_samples, D))


def weight_gradient_reference(
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
    """Gradients of weight (D, P*P) and bias (D,), in fp64 for fp64 tokens, else in fp32."""
    compute = accumulation_dtype(grad_TD)
    N, device = n_patches, planes_KHW.device
    keep_V = torch.arange(planes_KHW.shape[0] * N, device=device) if keep_index is None else keep_index
    x_VP2 = standardized_patches(planes_KHW, keep_V // N, keep_V % N, patch, eps, compute, (mean_K, var_K))
    rows_V = torch.arange(len(keep_V), device=device) + samples_of_patches(sample_K, keep_index, N) + 1
    grad_VD = grad_TD[rows_V].to(compute)
    return grad_VD.T @ x_VP2, grad_VD.sum(0)
