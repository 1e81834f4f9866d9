"""Triton kernels of `tokenize`: plane statistics in one pass, gather + standardize + project, weight gradient.

Imported only when the back-end is used: importing camae.kernels.tokenize does not import Triton.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from camae.errors import CamaeError
from camae.kernels._compile_ahead import CompileCase
from camae.kernels._device import architecture
from camae.kernels._dispatch import interpreting
from camae.kernels._launch import Kernel, launch
from camae.kernels.patches import patch_side


@dataclass(frozen=True)
class Tile:
    """Tokens, features and pixels of a tile, warps and pipeline stages.

    pixels: of a patch at a time.
    once:   whether the pixels are standardized once for all features and kept, or again for every feature tile.
    """

    tokens: int
    features: int
    pixels: int
    warps: int
    stages: int
    once: bool = True

    def patch_pixels(self, patch: int) -> int:
        """Pixels at a time for this patch side."""
        return min(self.pixels, patch**2)

    def parts(self, patch: int) -> int:
        """Parts in which a patch is kept; 0: none."""
        return patch**2 // self.patch_pixels(patch) if self.once else 0


@dataclass(frozen=True)
class TokenizeConfig:
    """Tiles of one architecture by bytes of a token's value and of a pixel, chosen by the compile-ahead figures.

    A forward tile reads the whole weight from L2, so more rows are better. words: of a statistics block, 4 B each.
    """

    forward: dict[tuple[int, int], Tile]
    gradient: dict[int, Tile]
    splits: int = 16
    words: int = 2048
    pixels: int = 4096
    warps: int = 8

    def forward_tile(self, working: torch.dtype, stored: torch.dtype) -> Tile:
        """For tokens of one dtype from planes of another."""
        return self.forward[min(working.itemsize, 4), min(stored.itemsize, 4)]


CONFIGS = {
    "sm_80": TokenizeConfig(
        forward={
            **{(2, stored): Tile(64, 64, 64, 4, 2) for stored in (1, 2, 4)},
            **{(4, stored): Tile(32, 64, 32, 4, 2, once=False) for stored in (1, 2, 4)},
        },
        gradient={2: Tile(32, 128, 64, 4, 2), 4: Tile(16, 64, 64, 4, 2)},
    ),
    "sm_90": TokenizeConfig(
        forward={
            **{(2, stored): Tile(128, 32, 64, 8, 2) for stored in (1, 2)},
            (2, 4): Tile(64, 64, 64, 4, 2),
            **{(4, stored): Tile(64, 64, 32, 4, 2, once=False) for stored in (1, 2, 4)},
        },
        gradient={2: Tile(32, 128, 64, 4, 2), 4: Tile(16, 64, 64, 4, 2)},
    ),
    "interpreter": TokenizeConfig(
        forward={
            **{(2, stored): Tile(32, 32, 64, 1, 1) for stored in (1, 2, 4)},
            **{(4, stored): Tile(32, 32, 16, 1, 1, once=False) for stored in (1, 2, 4)},
        },
        gradient={working: Tile(16, 32, 128, 1, 1) for working in (2, 4)},
        splits=2,
        words=128,
        pixels=512,
        warps=1,
    ),
}
# Sums of a statistics lane stay within 32 bits up to so many pixels of 8 and of 16 bits a lane.
LANE_PIXELS = 2**16


@triton.jit
def dot4(x, y, acc, INTERPRETED: tl.constexpr):
    """acc + the sum of the products of the four bytes of x and y, uint32: one instruction (DP4A) on a GPU."""
    if INTERPRETED:
        for shift in tl.static_range(0, 32, 8):
            acc += ((x >> shift) & 255) * ((y >> shift) & 255)
        return acc
    else:
        return tl.inline_asm_elementwise(
            "dp4a.u32.u32 $0, $1, $2, $3;", "=r,r,r,r", [x, y, acc], dtype=tl.uint32, is_pure=True, pack=1
        )


@triton.jit
def store_statistics(mean, var, k, s1, s2, pivot, n_pixels):
    """From the sums s1, s2 (fp64) of differences from `pivot` and of their squares.

    With y the differences, var >= (first - mean)^2 (1 - 1/L) / (L - 1), so the subtraction E[y^2] - E[y]^2 costs
    at most a factor L of fp64's 1e-16.
    """
    shift = s1 / n_pixels
    tl.store(mean + k, shift + pivot.to(tl.float64))
    tl.store(var + k, tl.maximum(s2 / n_pixels - shift * shift, 0.0))


@triton.jit
def store_integer_statistics(mean, var, k, s1, s2, pivot, n_pixels):
    """From the sums of values and of squares (int64), shifted exactly to differences from the first pixel."""
    around = s1 - n_pixels * pivot
    square = s2 - 2 * pivot * s1 + n_pixels * (pivot * pivot)
    store_statistics(mean, var, k, around.to(tl.float64), square.to(tl.float64), pivot, n_pixels)


@triton.jit
def byte_statistics_kernel(
    planes,  # (K, L) uint8, 4 divides L
    mean,  # (K,) float64, written
    var,  # (K,) float64, written, biased
    n_pixels,  # L
    WORDS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    # Four pixels at a time, exact: see LANE_PIXELS.
    k = tl.program_id(0).to(tl.int64)
    base = planes + k * n_pixels
    words = base.to(tl.pointer_type(tl.uint32))
    n_words = n_pixels // 4
    lane = tl.arange(0, WORDS)
    total = tl.zeros((WORDS,), tl.uint32)
    square = tl.zeros((WORDS,), tl.uint32)
    ones = tl.full((WORDS,), 0x01010101, tl.uint32)
    whole = n_words // WORDS * WORDS
    for start in range(0, whole, WORDS):
        x = tl.load(words + start + lane)
        total = dot4(x, ones, total, INTERPRETED)
        square = dot4(x, x, square, INTERPRETED)
    if whole < n_words:
        x = tl.load(words + whole + lane, mask=whole + lane < n_words, other=0)
        total = dot4(x, ones, total, INTERPRETED)
        square = dot4(x, x, square, INTERPRETED)
    s1, s2 = tl.sum(total.to(tl.int64), 0), tl.sum(square.to(tl.int64), 0)
    store_integer_statistics(mean, var, k, s1, s2, tl.load(base).to(tl.int64), n_pixels)


@triton.jit
def integer_statistics_kernel(
    planes,  # (K, L) uint8 or uint16
    mean,  # (K,) float64, written
    var,  # (K,) float64, written, biased
    n_pixels,  # L
    BLOCK: tl.constexpr,
):
    # 32-bit sums of values, 64-bit sums of squares (one wide multiply-add each): exact, see LANE_PIXELS.
    k = tl.program_id(0).to(tl.int64)
    base = planes + k * n_pixels
    lane = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.uint32)
    square = tl.zeros((BLOCK,), tl.uint64)
    whole = n_pixels // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        x = tl.load(base + start + lane)
        total += x.to(tl.uint32)
        square += x.to(tl.uint64) * x.to(tl.uint64)
    if whole < n_pixels:
        x = tl.load(base + whole + lane, mask=whole + lane < n_pixels, other=0)
        total += x.to(tl.uint32)
        square += x.to(tl.uint64) * x.to(tl.uint64)
    s1, s2 = tl.sum(total.to(tl.int64), 0), tl.sum(square.to(tl.int64), 0)
    store_integer_statistics(mean, var, k, s1, s2, tl.load(base).to(tl.int64), n_pixels)


@triton.jit
def float_statistics_kernel(
    planes,  # (K, L) float32
    mean,  # (K,) float64, written
    var,  # (K,) float64, written, biased
    n_pixels,  # L
    BLOCK: tl.constexpr,
):
    k = tl.program_id(0).to(tl.int64)
    base = planes + k * n_pixels
    pivot = tl.load(base).to(tl.float64)
    total = tl.zeros((BLOCK,), tl.float64)
    square = tl.zeros((BLOCK,), tl.float64)
    lane = tl.arange(0, BLOCK)
    for start in range(0, n_pixels, BLOCK):
        inside = start + lane < n_pixels
        x = tl.load(base + start + lane, mask=inside, other=0).to(tl.float64)
        y = tl.where(inside, x - pivot, 0)
        total += y
        square += y * y
    store_statistics(mean, var, k, tl.sum(total, 0), tl.sum(square, 0), pivot, n_pixels)


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
def standardized_pixels(geometry, pixel, DTYPE: tl.constexpr, P: tl.constexpr):
    """(rows, pixels) of patches in DTYPE; rows that are not inside hold finite values of no meaning."""
    planes, plane, patch, inside, high, low, rstd, height, width = geometry
    offset = pixel_offsets(plane, patch, pixel, height, width, P)
    x = tl.load(planes + offset, mask=inside[:, None], other=0).to(tl.float32)
    return (((x - high[:, None]) - low[:, None]) * rstd[:, None]).to(DTYPE)


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
    BLOCK_P: tl.constexpr,
    PARTS: tl.constexpr,  # P * P / BLOCK_P where pixels are standardized once (1, 2, 4), 0 for every feature tile
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

    high, low, rstd = standardization(mean, var, plane, inside, eps_squared)
    pixel = tl.arange(0, BLOCK_P)
    geometry = (planes, plane, patch, inside, high, low, rstd, height, width)
    # With PARTS pixels are standardized once, in so many parts for the registers' sake.
    if PARTS > 0:
        x0 = standardized_pixels(geometry, pixel, weight.dtype.element_ty, P)
    if PARTS > 1:
        x1 = standardized_pixels(geometry, pixel + BLOCK_P, weight.dtype.element_ty, P)
    if PARTS > 2:
        x2 = standardized_pixels(geometry, pixel + 2 * BLOCK_P, weight.dtype.element_ty, P)
        x3 = standardized_pixels(geometry, pixel + 3 * BLOCK_P, weight.dtype.element_ty, P)
    for start in range(0, D, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        valid = column < D
        both = inside[:, None] & valid[None, :]
        w_at = weight + column[None, :] * (P * P) + pixel[:, None]
        if PARTS > 0:
            w = tl.load(w_at, mask=valid[None, :], other=0.0)
            acc = tl.dot(x0, w, input_precision=PRECISION)
            if PARTS > 1:
                w = tl.load(w_at + BLOCK_P, mask=valid[None, :], other=0.0)
                acc = tl.dot(x1, w, acc, input_precision=PRECISION)
            if PARTS > 2:
                w = tl.load(w_at + 2 * BLOCK_P, mask=valid[None, :], other=0.0)
                acc = tl.dot(x2, w, acc, input_precision=PRECISION)
                w = tl.load(w_at + 3 * BLOCK_P, mask=valid[None, :], other=0.0)
                acc = tl.dot(x3, w, acc, input_precision=PRECISION)
        else:
            acc = tl.zeros((BLOCK_V, BLOCK_D), tl.float32)
            for begin in range(0, P * P, BLOCK_P):
                x = standardized_pixels(geometry, pixel + begin, weight.dtype.element_ty, P)
                w = tl.load(w_at + begin, mask=valid[None, :], other=0.0)
                acc = tl.dot(x, w, acc, input_precision=PRECISION)
        acc += tl.load(bias + column, mask=valid, other=0.0).to(tl.float32)[None, :]
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
        geometry = (planes, plane, index % N, inside, high, low, rstd, height, width)
        x = standardized_pixels(geometry, pixel, grad.dtype.element_ty, P)
        source = row + tl.load(sample + plane, mask=inside, other=0) + 1
        both = inside[:, None] & valid[None, :]
        g = tl.load(grad + source.to(tl.int64)[:, None] * D + column[None, :], mask=both, other=0.0)
        acc_bias += tl.sum(g.to(tl.float32), 0)
        acc += tl.dot(tl.trans(g), x, input_precision=PRECISION)
    at = grad_weight + (part * D + column)[:, None].to(tl.int64) * (P * P) + pixel[None, :]
    tl.store(at, acc, mask=valid[:, None])
    if tl.program_id(1) == 0:
        tl.store(grad_bias + part * D + column, acc_bias, mask=valid)


def precision(dtype: torch.dtype) -> str:
    """Input precision of tl.dot: three tf32 products for fp32 operands (as exact as fp32); no choice for 16 bits."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


def plane_statistics(planes_KHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance of every plane, (K,) float64 each. Raises CamaeError for planes of 2^28 px and more."""
    config = CONFIGS[architecture(planes_KHW.device)]
    K, L = planes_KHW.shape[0], planes_KHW.shape[1] * planes_KHW.shape[2]
    mean_K = torch.empty(K, dtype=torch.float64, device=planes_KHW.device)
    var_K = torch.empty_like(mean_K)
    if K == 0:
        return mean_K, var_K
    floating, block = planes_KHW.is_floating_point(), config.pixels
    if not floating and block * LANE_PIXELS <= L:
        raise CamaeError(f"plane_statistics: planes of {L} pixels exceed its exact sums; cut them into crops")
    arguments = (planes_KHW, mean_K, var_K, L)
    if planes_KHW.dtype == torch.uint8 and L % 4 == 0 and config.words * LANE_PIXELS > L:
        dot = {"WORDS": config.words, "INTERPRETED": interpreting()}
        launch(byte_statistics_kernel, (K,), *arguments, **dot, num_warps=config.warps)
    elif floating:
        launch(float_statistics_kernel, (K,), *arguments, BLOCK=block, num_warps=config.warps)
    else:
        launch(integer_statistics_kernel, (K,), *arguments, BLOCK=block, num_warps=config.warps)
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
    patch, tile = patch_side(P2), config.forward_tile(weight_DP2.dtype, planes_KHW.dtype)
    launch(
        tokenize_kernel,
        (triton.cdiv(V + 1, tile.tokens),),
        planes_KHW,
        sample_K,
        sample_K if keep_index is None else keep_index,
        weight_DP2,
        bias_D,
        pos_ND.to(weight_DP2.dtype),  # as the reference rounds it; read once for every token
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
        P=patch,
        BLOCK_V=tile.tokens,
        BLOCK_D=tile.features,
        BLOCK_P=tile.patch_pixels(patch),
        PARTS=tile.parts(patch),
        PRECISION=precision(weight_DP2.dtype),
        num_warps=tile.warps,
        num_stages=tile.stages,
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
    tile = config.gradient[min(grad_TD.dtype.itemsize, 4)]
    block_p = tile.patch_pixels(patch)
    weight_SDP2 = grad_TD.new_empty(config.splits, D, patch**2, dtype=torch.float32)
    bias_SD = grad_TD.new_empty(config.splits, D, dtype=torch.float32)
    launch(
        weight_gradient_kernel,
        (triton.cdiv(D, tile.features), patch**2 // block_p, config.splits),
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
        BLOCK_V=tile.tokens,
        BLOCK_D=tile.features,
        BLOCK_P=block_p,
        PRECISION=precision(grad_TD.dtype),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return weight_SDP2.sum(0), bias_SD.sum(0)


PLANES = {"u8": torch.uint8, "u16": torch.uint16, "fp32": torch.float32}
TOKENS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def compile_cases(arch: str) -> list[CompileCase]:
    """Statistics of every stored dtype; P = 16 and 8 on every stored dtype, bf16 and fp32 tokens; fp16 on uint8."""
    found = _statistics_cases(arch)
    shapes = [(P, stored, working) for working in ("bf16", "fp32") for P in (16, 8) for stored in PLANES]
    for P, stored, working in (*shapes, (16, "u8", "fp16"), (8, "u8", "fp16")):
        found += [_forward_case(arch, P, stored, working), _gradient_case(arch, P, stored, working)]
    return found


def _statistics_cases(arch: str) -> list[CompileCase]:
    config = CONFIGS[arch]
    block: dict[str, object] = {"BLOCK": config.pixels}
    kernels: tuple[tuple[str, str, Kernel, dict[str, object]], ...] = (
        ("u8", "u8", byte_statistics_kernel, {"WORDS": config.words, "INTERPRETED": False}),
        ("u8 any size", "u8", integer_statistics_kernel, block),
        ("u16", "u16", integer_statistics_kernel, block),
        ("fp32", "fp32", float_statistics_kernel, block),
    )
    found = []
    for name, stored, kernel, constants in kernels:
        types = {"planes": f"*{stored}", "mean": "*fp64", "var": "*fp64", "n_pixels": "i32"}
        divisible: tuple[str, ...] = () if "any" in name else ("n_pixels",)
        found.append(
            CompileCase(
                "plane_statistics",
                name,
                kernel,
                types,
                constants,
                config.warps,
                divisible=divisible,
                mma=False,
            )
        )
    return found


INTEGERS = ("V", "B", "N", "D", "height", "width")


def _common_types(stored: str) -> dict[str, str]:
    """Of the arguments that both kernels take."""
    inputs = {"planes": f"*{stored}", "sample": "*i64", "keep": "*i64", "mean": "*fp64", "var": "*fp64"}
    return {**inputs, **dict.fromkeys(INTEGERS, "i32"), "eps_squared": "fp32"}


def _tile_constants(tile: Tile, P: int, working: str) -> dict[str, object]:
    blocks = {"BLOCK_V": tile.tokens, "BLOCK_D": tile.features, "BLOCK_P": tile.patch_pixels(P)}
    return {"ALL": False, "P": P, "PRECISION": precision(TOKENS[working]), **blocks}


def _forward_case(arch: str, P: int, stored: str, working: str) -> CompileCase:
    tile = CONFIGS[arch].forward_tile(TOKENS[working], PLANES[stored])
    tokens = dict.fromkeys(("weight", "pos", "out"), f"*{working}")
    return CompileCase(
        "tokenize",
        f"P{P} {stored} {working}",
        tokenize_kernel,
        {**_common_types(stored), **tokens, "bias": "*fp32", "cls": "*fp32"},
        {**_tile_constants(tile, P, working), "PARTS": tile.parts(P)},
        tile.warps,
        tile.stages,
        ("N", "D", "height", "width"),
    )


def _gradient_case(arch: str, P: int, stored: str, working: str) -> CompileCase:
    tile, types = CONFIGS[arch].gradient[TOKENS[working].itemsize], _common_types(stored)
    del types["B"]
    return CompileCase(
        "tokenize_weight_gradient",
        f"P{P} {stored} {working}",
        weight_gradient_kernel,
        {**types, "grad": f"*{working}", "grad_weight": "*fp32", "grad_bias": "*fp32"},
        {**_tile_constants(tile, P, working), "SPLITS": CONFIGS[arch].splits},
        tile.warps,
        tile.stages,
        ("N", "D", "height", "width"),
    )
