"""tokenize: planes in their stored dtype -> standardized, projected visible tokens, packed by sample.

The unit is a plane (one channel of one crop). Each is standardized over itself, cut into P x P patches, and the
visible patches are projected, positioned and packed by sample with the class token first (paper, section
4.2.2: one shared tokenizer and the same positions for every channel).

Floor: V*P^2 stored pixels + (V + B)*D tokens written, plus K*H*W pixels for the statistics; 2*V*P^2*D FLOPs.
Neither the standardized image nor a masked token ever reaches memory; the backward pass recomputes patches.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from camae.errors import CamaeError
from camae.kernels import _patches as plane_ops
from camae.kernels._dispatch import (
    Backend,
    autocast_dtype,
    choose,
    default_backend,
    interpreting,
    reference_backend,
    triton_backend,
)
from camae.kernels._patches import check_planes, patch_side, standardized_patches


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
    sample_V = _samples_of(sample_K, keep_index, n_patches)
    begins_B1 = torch.arange(B + 1, device=sample_K.device)
    return (torch.searchsorted(sample_V, begins_B1) + begins_B1).to(torch.int32)


def _samples_of(sample_K: torch.Tensor, keep_index: torch.Tensor | None, n_patches: int) -> torch.Tensor:
    """(V,) the sample of every visible patch."""
    if keep_index is None:
        return sample_K[:, None].expand(-1, n_patches).flatten()
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
    compute = torch.float64 if weight_DP2.dtype == torch.float64 else torch.float32
    x_VP2 = standardized_patches(
        planes_KHW, keep_V // N, keep_V % N, patch_side(P2), eps, compute, (mean_K, var_K)
    )
    tokens_VD = F.linear(x_VP2.to(weight_DP2.dtype), weight_DP2, bias_D)
    tokens_VD = tokens_VD + pos_ND[keep_V % N].to(tokens_VD.dtype)
    sample_V = _samples_of(sample_K, keep_index, N)
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
    compute = torch.float64 if grad_TD.dtype == torch.float64 else torch.float32
    N, device = n_patches, planes_KHW.device
    keep_V = torch.arange(planes_KHW.shape[0] * N, device=device) if keep_index is None else keep_index
    x_VP2 = standardized_patches(planes_KHW, keep_V // N, keep_V % N, patch, eps, compute, (mean_K, var_K))
    rows_V = torch.arange(len(keep_V), device=device) + _samples_of(sample_K, keep_index, N) + 1
    grad_VD = grad_TD[rows_V].to(compute)
    return grad_VD.T @ x_VP2, grad_VD.sum(0)


@torch.library.custom_op("camae::plane_statistics", mutates_args=())
def _statistics_op(planes_KHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if planes_KHW.is_cuda or interpreting():
        from camae.kernels.tokenize import triton as tokenize_triton

        return tokenize_triton.plane_statistics(planes_KHW)
    return plane_ops.plane_statistics(planes_KHW)


@_statistics_op.register_fake
def _(planes_KHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean_K = planes_KHW.new_empty(planes_KHW.shape[0], dtype=torch.float64)
    return mean_K, torch.empty_like(mean_K)


@torch.library.custom_op("camae::tokenize", mutates_args=())
def _tokenize_op(
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
    arguments = (planes_KHW, sample_K, keep_index, weight_DP2, bias_D, pos_ND, cls_D, mean_K, var_K)
    if planes_KHW.is_cuda or interpreting():
        from camae.kernels.tokenize import triton as tokenize_triton

        return tokenize_triton.tokenize(*arguments, eps, n_samples)
    return tokenize_reference(*arguments, eps, n_samples)


@_tokenize_op.register_fake
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
def _weight_gradient_op(
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
    arguments = (planes_KHW, sample_K, keep_index, grad_TD.contiguous(), mean_K, var_K, eps, n_patches, patch)
    if planes_KHW.is_cuda or interpreting():
        from camae.kernels.tokenize import triton as tokenize_triton

        return tokenize_triton.weight_gradient(*arguments)
    return weight_gradient_reference(*arguments)


@_weight_gradient_op.register_fake
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
    compute = torch.float64 if grad_TD.dtype == torch.float64 else torch.float32
    D = grad_TD.shape[1]
    return grad_TD.new_empty(D, patch**2, dtype=compute), grad_TD.new_empty(D, dtype=compute)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    planes, sample, keep, weight, bias, pos, cls, mean, var, eps, n_samples = inputs
    ctx.save_for_backward(planes, sample, keep, mean, var)
    ctx.eps, ctx.n_samples, ctx.pos_shape = eps, n_samples, pos.shape
    ctx.dtypes = (weight.dtype, bias.dtype, pos.dtype, cls.dtype)
    ctx.patch = patch_side(weight.shape[1])


def _backward(ctx: Any, grad_TD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    planes_KHW, sample_K, keep_index, mean_K, var_K = ctx.saved_tensors
    needs_weight, needs_bias, needs_pos, needs_cls = ctx.needs_input_grad[3:7]
    weight_dtype, bias_dtype, pos_dtype, cls_dtype = ctx.dtypes
    N = ctx.pos_shape[0]
    weight = bias = pos = cls = None
    if needs_weight or needs_bias:
        weight, bias = _weight_gradient_op(
            planes_KHW, sample_K, keep_index, grad_TD, mean_K, var_K, ctx.eps, N, ctx.patch
        )
        weight, bias = weight.to(weight_dtype), bias.to(bias_dtype)
    compute = torch.float64 if grad_TD.dtype == torch.float64 else torch.float32
    if needs_pos:
        sample_V = _samples_of(sample_K, keep_index, N)
        rows_V = torch.arange(len(sample_V), device=sample_V.device)
        patch_V = (rows_V if keep_index is None else keep_index) % N
        grad_VD = grad_TD[rows_V + sample_V + 1].to(compute)
        pos = grad_VD.new_zeros(ctx.pos_shape).index_add(0, patch_V, grad_VD).to(pos_dtype)
    if needs_cls:
        class_rows_B = token_cu_seqlens(sample_K, keep_index, N, ctx.n_samples)[:-1].long()
        cls = grad_TD[class_rows_B].to(compute).sum(0).to(cls_dtype)
    return None, None, None, weight, bias, pos, cls, None, None, None, None


_tokenize_op.register_autograd(_backward, setup_context=_setup_context)


def plane_statistics(
    planes_KHW: torch.Tensor, *, backend: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance of every plane (K, H, W), in stored values, (K,) float64 each."""
    device = planes_KHW.device
    name = choose("plane_statistics", backend, backends(device), default_backend(device))
    if name == "reference":
        return plane_ops.plane_statistics(planes_KHW)
    return _statistics_op(planes_KHW.contiguous())


def backends(device: torch.device | str = "cpu") -> tuple[Backend, ...]:
    """The op's back-ends and whether each can run on `device`."""
    return (triton_backend(device), reference_backend())


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
    name = choose("tokenize", backend, backends(device), default_backend(device))
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
    return _tokenize_op(
        planes_KHW.contiguous(),
        sample_K,
        keep_index,
        weight_DP2.contiguous(),
        bias_D,
        pos_ND.contiguous(),
        cls_D,
        *statistics,
        eps,
        B,
    )
