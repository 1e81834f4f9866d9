"""Triton kernels of `tokenize`: plane statistics in one pass, gather + standardize + project, weight gradient.

Imported only when the back-end is used: importing camae.kernels.tokenize does not import Triton.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from camae.kernels._compile_ahead import CompileCase
from camae.kernels._device import architecture
from camae.kernels._launch import launch
from camae.kernels.patches import patch_side


@dataclass(frozen=True)
class TokenizeConfig:
    """Tile sizes of one architecture, chosen by the compile-ahead figures (no spills), not by timing yet.

    tokens: rows of a tile for 8-bit planes, half of it for wider ones (their gather holds more registers); a
    tile reads the whole weight from L2, so more rows are better.
    """

    tokens: int
    features: int
    stages: int
    warps: int = 8
    pixels: int = 4096
    weight_tokens: int = 64
    weight_features: int = 128
    weight_pixels: int = 128
    splits: int = 16

    def rows(self, stored: torch.dtype) -> int:
        """Tokens per tile for planes of this dtype."""
        return self.tokens if stored == torch.uint8 else self.tokens // 2


CONFIGS = {
    "sm_80": TokenizeConfig(tokens=128, features=64, stages=2, weight_tokens=32),
    "sm_90": TokenizeConfig(tokens=128, features=64, stages=2),
    "interpreter": TokenizeConfig(
        tokens=32, features=32, stages=1, pixels=512, weight_tokens=16, weight_features=32, splits=2
    ),
}


@triton.jit
def statistics_kernel(
    planes,  # (K, L) uint8, uint16 or float32
    mean,  # (K,) float64, written
    var,  # (K,) float64, written, biased
    n_pixels,  # L
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,  # per-lane sums: int32 (uint8), int64 (uint16), float64 (float32)
):
    # Sums of differences from the first pixel and of their squares: exact for integers (uint8 lanes hold
    # 33,000 squares in 31 bits). With y the differences, var >= (first - mean)^2 (1 - 1/L) / (L - 1), so the
    # subtraction E[y^2] - E[y]^2 costs at most a factor L of fp64's 1e-16.
    k = tl.program_id(0).to(tl.int64)
    base = planes + k * n_pixels
    pivot = tl.load(base).to(ACC)
    total = tl.zeros((BLOCK,), ACC)
    square = tl.zeros((BLOCK,), ACC)
    lane = tl.arange(0, BLOCK)
    for start in range(0, n_pixels, BLOCK):
        inside = start + lane < n_pixels
        x = tl.load(base + start + lane, mask=inside, other=0).to(ACC)
        y = tl.where(inside, x - pivot, 0)
        total += y
        square += y * y
    if tl.float64 == ACC:
        s1 = tl.sum(total, 0)
        s2 = tl.sum(square, 0)
    else:
        s1 = tl.sum(total.to(tl.int64), 0).to(tl.float64)
        s2 = tl.sum(square.to(tl.int64), 0).to(tl.float64)
    shift = s1 / n_pixels
    tl.store(mean + k, shift + pivot.to(tl.float64))
    tl.store(var + k, tl.maximum(s2 / n_pixels - shift * shift, 0.0))


@triton.jit
def standardization(mean, var, plane, inside, eps_squared):
    """The plane's mean in two fp32 parts (the first subtraction is exact near it) and 1 / sqrt(var + eps^2)."""
    mean64 = tl.load(mean + plane, mask=inside, other=0.0)
    high = mean64.to(tl.float32)
    low = (mean64 - high.to(tl.float64)).to(tl.float32)
    spread = tl.load(var + plane, mask=inside, other=1.0) + eps_squared
    return high, low, tl.rsqrt(spread.to(tl.float32))


@triton.jit
def pixel_offsets(plane, patch, pixel, height, width, P: tl.constexpr):
    """(rows, pixels) offsets into planes (K, H, W): `patch` counts row-major, `pixel` row-major in the patch."""
    grid_w = width // P
    corner = plane * height * width + (patch // grid_w) * P * width + (patch % grid_w) * P
    return corner[:, None] + ((pixel // P) * width + pixel % P)[None, :]


@triton.jit
def tokenize_kernel(
    planes,  # (K, H, W) stored dtype
    sample,  # (K,) int64, non-decreasing
    keep,  # (V,) int64 ascending plane * N + patch; not read when ALL
    weight,  # (D, P*P)
    bias,  # (D,)
    pos,  # (N, D)
    cls,  # (D,)
    mean,  # (K,) float64
    var,  # (K,) float64
    out,  # (V + B, D), every row written
    V,
    B,
    N,
    D,
    height,
    width,
    eps_squared,
    ALL: tl.constexpr,
    P: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = row < V
    index = row.to(tl.int64)
    if not ALL:
        index = tl.load(keep + row, mask=inside, other=0)
    index = tl.where(inside, index, 0)
    plane = index // N
    patch = index % N
    own = tl.load(sample + plane, mask=inside, other=0)
    target = row + own + 1

    # Class tokens: row v begins the samples (sample of v-1, sample of v]; the virtual row V begins those left.
    before = row - 1
    has_before = (before >= 0) & (before < V)
    earlier = before.to(tl.int64)
    if not ALL:
        earlier = tl.load(keep + before, mask=has_before, other=0)
    previous = tl.load(sample + tl.where(has_before, earlier // N, 0), mask=has_before, other=-1)
    begins = tl.where(inside, own, tl.where(row == V, B - 1, previous)) - previous
    for turn in range(tl.max(begins, 0)):
        for start in range(0, D, BLOCK_D):
            column = start + tl.arange(0, BLOCK_D)
            token = tl.load(cls + column, mask=column < D, other=0.0).to(out.dtype.element_ty)
            at = out + (row + previous + 1 + turn).to(tl.int64)[:, None] * D + column[None, :]
            tile = tl.broadcast_to(token[None, :], (BLOCK_V, BLOCK_D))
            tl.store(at, tile, mask=(begins > turn)[:, None] & (column < D)[None, :])

    pixel = tl.arange(0, P * P)
    high, low, rstd = standardization(mean, var, plane, inside, eps_squared)
    offset = pixel_offsets(plane, patch, pixel, height, width, P)
    x = tl.load(planes + offset, mask=inside[:, None], other=0).to(tl.float32)
    x = ((x - high[:, None]) - low[:, None]) * rstd[:, None]
    x = x.to(weight.dtype.element_ty)
    for start in range(0, D, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        valid = column < D
        w = tl.load(weight + column[None, :] * (P * P) + pixel[:, None], mask=valid[None, :], other=0.0)
        acc = tl.dot(x, w, input_precision=PRECISION)
        acc += tl.load(bias + column, mask=valid, other=0.0).to(tl.float32)[None, :]
        both = inside[:, None] & valid[None, :]
        acc += tl.load(pos + patch[:, None] * D + column[None, :], mask=both, other=0.0).to(tl.float32)
        at = out + target.to(tl.int64)[:, None] * D + column[None, :]
        tl.store(at, acc.to(out.dtype.element_ty), mask=both)


@triton.jit
def weight_gradient_kernel(
    planes,  # (K, H, W) stored dtype: patches are recomputed, never stored
    sample,  # (K,) int64
    keep,  # (V,) int64; not read when ALL
    grad,  # (V + B, D) gradient of the tokens
    mean,  # (K,) float64
    var,  # (K,) float64
    grad_weight,  # (SPLITS, D, P*P) float32 partial sums, written
    grad_bias,  # (SPLITS, D) float32 partial sums, written
    V,
    N,
    D,
    height,
    width,
    eps_squared,
    ALL: tl.constexpr,
    P: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PRECISION: tl.constexpr,
):
    column = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    pixel = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    part = tl.program_id(2)
    valid = column < D
    per_part = tl.cdiv(tl.cdiv(V, BLOCK_V), SPLITS) * BLOCK_V
    acc = tl.zeros((BLOCK_D, BLOCK_P), tl.float32)
    acc_bias = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(part * per_part, tl.minimum((part + 1) * per_part, V), BLOCK_V):
        row = start + tl.arange(0, BLOCK_V)
        inside = row < V
        index = row.to(tl.int64)
        if not ALL:
            index = tl.load(keep + row, mask=inside, other=0)
        index = tl.where(inside, index, 0)
        plane = index // N
        high, low, rstd = standardization(mean, var, plane, inside, eps_squared)
        offset = pixel_offsets(plane, index % N, pixel, height, width, P)
        x = tl.load(planes + offset, mask=inside[:, None], other=0).to(tl.float32)
        x = ((x - high[:, None]) - low[:, None]) * rstd[:, None]
        source = row + tl.load(sample + plane, mask=inside, other=0) + 1
        both = inside[:, None] & valid[None, :]
        g = tl.load(grad + source.to(tl.int64)[:, None] * D + column[None, :], mask=both, other=0.0)
        acc_bias += tl.sum(g.to(tl.float32), 0)
        acc += tl.dot(tl.trans(g), x.to(g.dtype), input_precision=PRECISION)
    at = grad_weight + (part * D + column)[:, None].to(tl.int64) * (P * P) + pixel[None, :]
    tl.store(at, acc, mask=valid[:, None])
    if tl.program_id(1) == 0:
        tl.store(grad_bias + part * D + column, acc_bias, mask=valid)


ACCUMULATORS = {torch.uint8: tl.int32, torch.uint16: tl.int64, torch.float32: tl.float64}


def precision(dtype: torch.dtype) -> str:
    """How tl.dot multiplies: three tf32 products for fp32 operands (as exact as fp32); no choice for 16 bits."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


def plane_statistics(planes_KHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance of every plane, (K,) float64 each."""
    config = CONFIGS[architecture(planes_KHW.device)]
    K = planes_KHW.shape[0]
    mean_K = torch.empty(K, dtype=torch.float64, device=planes_KHW.device)
    var_K = torch.empty_like(mean_K)
    if K:
        launch(
            statistics_kernel,
            (K,),
            planes_KHW,
            mean_K,
            var_K,
            planes_KHW[0].numel(),
            BLOCK=config.pixels,
            ACC=ACCUMULATORS[planes_KHW.dtype],
            num_warps=config.warps,
        )
    return mean_K, var_K


def tokenize(
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
    """Launch the forward kernel; every tensor contiguous, on one device."""
    config = CONFIGS[architecture(planes_KHW.device)]
    (K, H, W), (D, P2), N = planes_KHW.shape, weight_DP2.shape, pos_ND.shape[0]
    V = K * N if keep_index is None else keep_index.numel()
    out_TD = weight_DP2.new_empty(V + n_samples, D)
    if out_TD.numel() == 0:
        return out_TD
    rows = config.rows(planes_KHW.dtype)
    launch(
        tokenize_kernel,
        (triton.cdiv(V + 1, rows),),
        planes_KHW,
        sample_K,
        sample_K if keep_index is None else keep_index,
        weight_DP2,
        bias_D,
        pos_ND,
        cls_D,
        mean_K,
        var_K,
        out_TD,
        V,
        n_samples,
        N,
        D,
        H,
        W,
        eps**2,
        ALL=keep_index is None,
        P=patch_side(P2),
        BLOCK_V=rows,
        BLOCK_D=config.features,
        PRECISION=precision(weight_DP2.dtype),
        num_warps=config.warps,
        num_stages=config.stages,
    )
    return out_TD


def weight_gradient(
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
    """Gradients of weight (D, P*P) and bias (D,) in fp32: partial sums in a fixed order, so deterministic."""
    grad_TD = grad_TD.contiguous()
    config = CONFIGS[architecture(planes_KHW.device)]
    (K, H, W), D = planes_KHW.shape, grad_TD.shape[1]
    V = K * n_patches if keep_index is None else keep_index.numel()
    block_p = min(config.weight_pixels, patch**2)
    weight_SDP2 = grad_TD.new_empty(config.splits, D, patch**2, dtype=torch.float32)
    bias_SD = grad_TD.new_empty(config.splits, D, dtype=torch.float32)
    launch(
        weight_gradient_kernel,
        (triton.cdiv(D, config.weight_features), patch**2 // block_p, config.splits),
        planes_KHW,
        sample_K,
        sample_K if keep_index is None else keep_index,
        grad_TD,
        mean_K,
        var_K,
        weight_SDP2,
        bias_SD,
        V,
        n_patches,
        D,
        H,
        W,
        eps**2,
        ALL=keep_index is None,
        P=patch,
        SPLITS=config.splits,
        BLOCK_V=config.weight_tokens,
        BLOCK_D=config.weight_features,
        BLOCK_P=block_p,
        PRECISION=precision(grad_TD.dtype),
        num_warps=config.warps,
        num_stages=config.stages,
    )
    return weight_SDP2.sum(0), bias_SD.sum(0)


def compile_cases(arch: str) -> list[CompileCase]:
    """The production shapes: P = 16 and 8 on uint8 and uint16 planes, bf16 tokens."""
    config, found = CONFIGS[arch], []
    for stored, acc in (("u8", tl.int32), ("u16", tl.int64)):
        types = {"planes": f"*{stored}", "mean": "*fp64", "var": "*fp64", "n_pixels": "i32"}
        constants: dict[str, object] = {"BLOCK": config.pixels, "ACC": acc}
        found.append(
            CompileCase(
                "plane_statistics",
                stored,
                statistics_kernel,
                types,
                constants,
                config.warps,
                divisible=("n_pixels",),
                mma=False,
            )
        )
    for P, stored in ((16, "u8"), (8, "u8"), (16, "u16")):
        name = f"P{P} {stored} bf16"
        shared: dict[str, object] = {
            "ALL": False,
            "P": P,
            "BLOCK_V": config.rows(torch.uint8 if stored == "u8" else torch.uint16),
            "BLOCK_D": config.features,
            "PRECISION": "tf32",
        }
        integers = dict.fromkeys(("V", "B", "N", "D", "height", "width"), "i32")
        inputs = {"planes": f"*{stored}", "sample": "*i64", "keep": "*i64", "mean": "*fp64", "var": "*fp64"}
        tables = {"weight": "*bf16", "bias": "*fp32", "pos": "*fp32", "cls": "*fp32", "out": "*bf16"}
        types = {**inputs, **tables, **integers, "eps_squared": "fp32"}
        divisible = ("N", "D", "height", "width")
        found.append(
            CompileCase(
                "tokenize", name, tokenize_kernel, types, shared, config.warps, config.stages, divisible
            )
        )
        del integers["B"]
        sums = {"grad": "*bf16", "grad_weight": "*fp32", "grad_bias": "*fp32"}
        tiles = {
            "SPLITS": config.splits,
            "BLOCK_V": config.weight_tokens,
            "BLOCK_D": config.weight_features,
            "BLOCK_P": min(config.weight_pixels, P * P),
        }
        found.append(
            CompileCase(
                "tokenize_weight_gradient",
                name,
                weight_gradient_kernel,
                {**inputs, **sums, **integers, "eps_squared": "fp32"},
                {"ALL": False, "P": P, "PRECISION": "tf32", **tiles},
                config.warps,
                config.stages,
                divisible,
            )
        )
    return found
