"""tokenize: planes in their stored dtype -> standardized, projected visible tokens, packed by sample.

The unit is a plane (one channel of one crop). Each is standardized over itself, cut into P x P patches, and the
visible patches are projected, positioned and packed by sample with the class token first (paper, section
4.2.2: one shared tokenizer and the same positions for every channel).

Floor: V*P^2 stored pixels + (V + B)*D tokens written, plus K*H*W pixels for the statistics; 2*V*P^2*D FLOPs.
Neither the standardized image nor a masked token ever reaches memory; the backward pass recomputes patches.
"""

from __future__ import annotations

import torch

from camae.errors import CamaeError
from camae.kernels import _dispatch
from camae.kernels._device import autocast_dtype
from camae.kernels.patches import check_planes, patch_side, plane_statistics_reference
from camae.kernels.tokenize.reference import count_samples, token_cu_seqlens, tokenize_reference
from camae.kernels.tokenize.registration import plane_statistics_op, tokenize_op

__all__ = ["backends", "count_samples", "plane_statistics", "token_cu_seqlens", "tokenize"]


def plane_statistics(
    planes_KHW: torch.Tensor, *, backend: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance of every plane (K, H, W), in stored values, (K,) float64 each."""
    name = _dispatch.choose("plane_statistics", backend, planes_KHW.device)
    if name == "reference":
        return plane_statistics_reference(planes_KHW)
    return plane_statistics_op(planes_KHW.contiguous())


def backends(device: torch.device | str = "cpu") -> tuple[_dispatch.Backend, ...]:
    """The op's back-ends and whether each can run on `device`."""
    return _dispatch.backends_of("tokenize", device)


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
    statistics: tuple[torch.Tensor, torch.Tensor] | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Visible tokens (V + B, D), packed by sample with the class token first in each.

    planes_KHW: (K, H, W) uint8, uint16 or float32, stored values; each standardized over itself.
    sample_K:   (K,) int64 non-decreasing, the sample of each plane.
    keep_index: (V,) int64 ascending flat indices plane * N + patch of visible tokens; None: all K*N.
    weight_DP2: (D, P*P) projection, bias_D: (D,), pos_ND: (N, D) positions, cls_D: (D,) class token.
    eps:        in stored values, added to the standard deviation in quadrature.
    n_samples:  B, where the caller knows it; else read back from sample_K.
    statistics: what `plane_statistics` gave, where the caller has it.

    Tokens have the weight's dtype (autocast's, inside autocast). Differentiable in weight, bias, positions and
    class token. Raises CamaeError for shapes that do not fit, MissingBackendError for a back-end that cannot
    run here.
    """
    P, N, device = patch_side(weight_DP2.shape[1]), pos_ND.shape[0], planes_KHW.device
    check_planes(planes_KHW, P)
    grid = (planes_KHW.shape[1] // P) * (planes_KHW.shape[2] // P)
    if grid != N:
        raise CamaeError(f"planes have {grid} patches of {P} px but the position table has {N} rows")
    name = _dispatch.choose("tokenize", backend, device, size=P)
    _dispatch.check_patch("tokenize", name, P)
    if low := autocast_dtype(device):
        weight_DP2 = weight_DP2.to(low)
    if statistics is None:
        statistics = plane_statistics(planes_KHW, backend=name)
    B = count_samples(sample_K) if n_samples is None else n_samples
    if name == "reference":
        bias_D = bias_D.to(weight_DP2.dtype)
        return tokenize_reference(
            planes_KHW, sample_K, keep_index, weight_DP2, bias_D, pos_ND, cls_D, *statistics, eps, B
        )
    return tokenize_op(
        planes_KHW.contiguous(),
        sample_K.contiguous(),
        None if keep_index is None else keep_index.contiguous(),
        weight_DP2.contiguous(),
        bias_D.contiguous(),
        pos_ND.contiguous(),
        cls_D.contiguous(),
        *(x.contiguous() for x in statistics),
        eps,
        B,
    )
