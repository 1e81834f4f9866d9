"""Triton kernel of `reconstruction_loss`: targets, both losses and the gradient in one pass over the prediction.

Both transforms are real matrix products, in three tf32 products each (as exact as fp32):
P = 16: separable. Along the rows one product with 16 interleaved columns [1, (-1)^w, cos_1, sin_1, .. cos_7, sin_7];
        along the columns two products with cos and sin. A pair (a, b) of columns lies in one thread.
P = 8:  one 64 x 64 product with interleaved (re, im) columns of the 30 complex frequencies of the half spectrum,
        then the four real ones.
Imported only when the back-end is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl

from camae.kernels._compile_ahead import CompileCase
from camae.kernels._device import architecture
from camae.kernels._launch import launch
from camae.kernels.patches import patch_side
from camae.kernels.tokenize.triton import pixel_offsets, standardization


@dataclass(frozen=True)
class LossConfig:
    """Patches per program by patch side, and warps, chosen by the compile-ahead figures, not by timing yet.

    float_warps: for patches of 8 px of float32 planes, whose registers four warps would spill.
    """

    patches_16: int
    patches_8: int
    warps: int = 4
    float_warps: int = 8

    def patches(self, patch: int) -> int:
        """Patches per program for this patch side."""
        return self.patches_16 if patch == 16 else self.patches_8

    def warps_for(self, patch: int, stored: torch.dtype) -> int:
        """Warps of a program for this patch side and dtype of the planes."""
        return self.float_warps if patch == 8 and stored.is_floating_point else self.warps


CONFIGS = {
    "sm_80": LossConfig(patches_16=4, patches_8=16),
    "sm_90": LossConfig(patches_16=4, patches_8=16),
    "interpreter": LossConfig(patches_16=8, patches_8=16),
}


@triton.jit
def fourier_term(re, im, target, weight, tiny):
    """weight * | |F| - target | and the factor g with gradient (g * re, g * im); 0 where |F| is rounding noise."""
    magnitude = tl.sqrt(re * re + im * im)
    magnitude = tl.where(magnitude > tiny, magnitude, 0.0)
    difference = magnitude - target
    sign = tl.where(difference > 0, 1.0, tl.where(difference < 0, -1.0, 0.0))
    factor = tl.where(magnitude > 0, weight * sign / tl.maximum(magnitude, 1e-30), 0.0)
    return weight * tl.abs(difference), factor


@triton.jit
def spectrum16(x, basis, cosine, sine, BLOCK_M: tl.constexpr):
    """Four real parts (BLOCK_M, 16, 8) of the half spectrum of x (BLOCK_M, 16, 16)."""
    rows = tl.reshape(x, (BLOCK_M * 16, 16))
    y = tl.reshape(tl.dot(rows, basis, input_precision="tf32x3"), (BLOCK_M, 16, 16))
    cos_a, cos_b = tl.split(tl.reshape(tl.dot(cosine, y, input_precision="tf32x3"), (BLOCK_M, 16, 8, 2)))
    sin_a, sin_b = tl.split(tl.reshape(tl.dot(sine, y, input_precision="tf32x3"), (BLOCK_M, 16, 8, 2)))
    return cos_a, cos_b, sin_a, sin_b


@triton.jit
def fourier16(x, target, tiny, tables, BLOCK_M: tl.constexpr):
    """Sum over frequencies of | |F| - |F'| | per patch, (BLOCK_M,), and its gradient (BLOCK_M, 16, 16)."""
    h = tl.arange(0, 16)
    basis = tl.load(tables + h[:, None] * 16 + h[None, :])
    cosine = tl.load(tables + 256 + h[:, None] * 16 + h[None, :])
    sine = tl.load(tables + 512 + h[:, None] * 16 + h[None, :])
    cosine = tl.broadcast_to(cosine[None, :, :], (BLOCK_M, 16, 16))
    sine = tl.broadcast_to(sine[None, :, :], (BLOCK_M, 16, 16))
    # Pair 0 holds the columns of frequencies 0 and 8 (no sine part), pair v > 0 the cosine and sine of v:
    # F(u, v) = (cos_a - sin_b) - i (sin_a + cos_b), and F(-u, -v) is its conjugate, hence the weight 2.
    # Of the target only magnitudes are kept, before the prediction's spectrum needs the registers.
    paired = (tl.arange(0, 8) > 0)[None, None, :]
    cos_a, cos_b, sin_a, sin_b = spectrum16(target, basis, cosine, sine, BLOCK_M)
    re, im = cos_a - tl.where(paired, sin_b, 0.0), sin_a + tl.where(paired, cos_b, 0.0)
    target1, target2 = tl.sqrt(re * re + im * im), tl.sqrt(cos_b * cos_b + sin_b * sin_b)
    cos_a, cos_b, sin_a, sin_b = spectrum16(x, basis, cosine, sine, BLOCK_M)
    re, im = cos_a - tl.where(paired, sin_b, 0.0), sin_a + tl.where(paired, cos_b, 0.0)
    loss1, g1 = fourier_term(re, im, target1, tl.where(paired, 2.0, 1.0), tiny[:, None, None])
    loss2, g2 = fourier_term(cos_b, sin_b, target2, tl.where(paired, 0.0, 1.0), tiny[:, None, None])
    grad_cos = tl.join(g1 * re, tl.where(paired, g1 * im, g2 * cos_b))
    grad_sin = tl.join(g1 * im, tl.where(paired, -g1 * re, g2 * sin_b))
    grad_cos = tl.reshape(grad_cos, (BLOCK_M, 16, 16))
    grad_sin = tl.reshape(grad_sin, (BLOCK_M, 16, 16))
    # The cosine and sine matrices are symmetric: the adjoint multiplies with the same ones.
    back = tl.dot(cosine, grad_cos, input_precision="tf32x3")
    back += tl.dot(sine, grad_sin, input_precision="tf32x3")
    back = tl.dot(tl.reshape(back, (BLOCK_M * 16, 16)), tl.trans(basis), input_precision="tf32x3")
    return tl.sum(tl.sum(loss1 + loss2, 2), 1), tl.reshape(back, (BLOCK_M, 16, 16))


@triton.jit
def fourier8(x, target, tiny, tables, BLOCK_M: tl.constexpr):
    """As fourier16 for x (BLOCK_M, 64): gradient (BLOCK_M, 64)."""
    p = tl.arange(0, 64)
    basis = tl.load(tables + p[:, None] * 64 + p[None, :])
    # Pairs 0..29 are (re, im) of frequencies that stand twice in the spectrum; 30 and 31 hold two real ones.
    paired = (tl.arange(0, 32) < 30)[None, :]
    z = tl.dot(target, basis, input_precision="tf32x3")
    a, b = tl.split(tl.reshape(z, (BLOCK_M, 32, 2)))
    target1, target2 = tl.sqrt(a * a + tl.where(paired, b * b, 0.0)), tl.abs(b)
    z = tl.dot(x, basis, input_precision="tf32x3")
    a, b = tl.split(tl.reshape(z, (BLOCK_M, 32, 2)))
    loss1, g1 = fourier_term(a, tl.where(paired, b, 0.0), target1, tl.where(paired, 2.0, 1.0), tiny[:, None])
    loss2, g2 = fourier_term(
        b, tl.zeros((BLOCK_M, 32), tl.float32), target2, tl.where(paired, 0.0, 1.0), tiny[:, None]
    )
    grad = tl.reshape(tl.join(g1 * a, tl.where(paired, g1, g2) * b), (BLOCK_M, 64))
    adjoint = tl.load(tables + 4096 + p[:, None] * 64 + p[None, :])
    return tl.sum(loss1 + loss2, 1), tl.dot(grad, adjoint, input_precision="tf32x3")


@triton.jit
def loss_kernel(
    pred,  # (M, P*P)
    planes,  # (K, H, W) stored dtype
    plane_index,  # (M,) int64
    patch_index,  # (M,) int64
    weights,  # (M,) float32
    mean,  # (K,) float64
    var,  # (K,) float64
    tables,  # float32: P = 16: basis, cosine, sine (3, 16, 16); P = 8: basis and its transpose (2, 64, 64)
    parts,  # (programs, 2) float32: weighted MSE and Fourier sums, written
    grad,  # (M, P*P) gradient of (1 - alpha) * mse + alpha * fourier, written
    M,
    height,
    width,
    eps_squared,
    alpha,
    P: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = row < M
    pixel = tl.arange(0, P * P)
    plane = tl.load(plane_index + row, mask=inside, other=0)
    patch = tl.load(patch_index + row, mask=inside, other=0)
    weight = tl.load(weights + row, mask=inside, other=0.0)
    high, low, rstd = standardization(mean, var, plane, inside, eps_squared)
    offset = pixel_offsets(plane, patch, pixel, height, width, P)
    target = tl.load(planes + offset, mask=inside[:, None], other=0).to(tl.float32)
    target = ((target - high[:, None]) - low[:, None]) * rstd[:, None]
    target = tl.where(inside[:, None], target, 0.0)
    at = row.to(tl.int64)[:, None] * (P * P) + pixel[None, :]
    x = tl.load(pred + at, mask=inside[:, None], other=0.0).to(tl.float32)
    difference = x - target
    # |F| <= sum |x|: below four roundings of that bound a magnitude is noise and its phase has no meaning.
    tiny = 4.8e-7 * tl.sum(tl.abs(x), 1)
    if P == 16:
        x3 = tl.reshape(x, (BLOCK_M, 16, 16))
        fourier, slope3 = fourier16(x3, tl.reshape(target, (BLOCK_M, 16, 16)), tiny, tables, BLOCK_M)
        slope = tl.reshape(slope3, (BLOCK_M, 256))
    else:
        fourier, slope = fourier8(x, target, tiny, tables, BLOCK_M)
    scale = weight / (P * P)
    result = ((1 - alpha) * 2) * difference + alpha * slope
    tl.store(grad + at, (result * scale[:, None]).to(grad.dtype.element_ty), mask=inside[:, None])
    program = tl.program_id(0)
    tl.store(parts + program * 2, tl.sum(tl.sum(difference * difference, 1) * scale, 0))
    tl.store(parts + program * 2 + 1, tl.sum(fourier * scale, 0))


@lru_cache(maxsize=8)
def fourier_tables(patch: int, device: torch.device) -> torch.Tensor:
    """The kernel's constant matrices, fp32 roundings of fp64 values."""
    grid = torch.arange(patch, dtype=torch.float64)
    angle = 2 * math.pi / patch * torch.outer(grid, grid)
    if patch == 16:
        columns = [torch.ones(16, dtype=torch.float64), torch.cos(angle[8])]
        for v in range(1, 8):
            columns += [torch.cos(angle[v]), torch.sin(angle[v])]
        tables = torch.stack([torch.stack(columns, 1), torch.cos(angle), torch.sin(angle)])
    else:
        complex_ones = [(u, v) for v in range(1, 4) for u in range(8)]
        complex_ones += [(u, v) for v in (0, 4) for u in range(1, 4)]
        phases = [(angle[u][:, None] + angle[v][None, :]).flatten() for u, v in complex_ones]
        columns = [f(phase) for phase in phases for f in (torch.cos, torch.sin)]
        for u, v in ((0, 0), (0, 4), (4, 0), (4, 4)):
            columns.append(torch.cos(angle[u][:, None] + angle[v][None, :]).flatten())
        basis = torch.stack(columns, 1)
        tables = torch.stack([basis, basis.T])
    return tables.to(torch.float32).contiguous().to(device)


def reconstruction_loss(
    pred_MP2: torch.Tensor,
    planes_KHW: torch.Tensor,
    plane_M: torch.Tensor,
    patch_M: torch.Tensor,
    weight_M: torch.Tensor,
    mean_K: torch.Tensor,
    var_K: torch.Tensor,
    eps: float,
    alpha: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launch the kernel: total (), (2,) fp32 weighted sums of MSE and Fourier L1, gradient (M, P*P)."""
    config = CONFIGS[architecture(pred_MP2.device)]
    M, P2 = pred_MP2.shape
    patch = patch_side(P2)
    block = config.patches(patch)
    programs = triton.cdiv(M, block)
    parts = pred_MP2.new_empty(programs, 2, dtype=torch.float32)
    grad_MP2 = torch.empty_like(pred_MP2)
    if M:
        launch(
            loss_kernel,
            (programs,),
            pred_MP2,
            planes_KHW,
            plane_M,
            patch_M,
            weight_M,
            mean_K,
            var_K,
            fourier_tables(patch, pred_MP2.device),
            parts,
            grad_MP2,
            M,
            planes_KHW.shape[1],
            planes_KHW.shape[2],
            eps**2,
            alpha,
            P=patch,
            BLOCK_M=block,
            num_warps=config.warps_for(patch, planes_KHW.dtype),
        )
    sums = parts.sum(0)
    return (1 - alpha) * sums[0] + alpha * sums[1], sums, grad_MP2


def compile_cases(arch: str) -> list[CompileCase]:
    """P = 16 and 8: bf16 predictions on every stored dtype, fp32 on 8 bits and fp32, fp16 on 8 bits."""
    config, found = CONFIGS[arch], []
    kinds = [
        ("bf16", "u8"),
        ("bf16", "u16"),
        ("bf16", "fp32"),
        ("fp32", "u8"),
        ("fp32", "fp32"),
        ("fp16", "u8"),
    ]
    for P, (working, stored) in ((P, kind) for P in (16, 8) for kind in kinds):
        types = {"pred": f"*{working}", "planes": f"*{stored}", "plane_index": "*i64", "patch_index": "*i64"}
        types |= {"weights": "*fp32", "mean": "*fp64", "var": "*fp64", "tables": "*fp32"}
        types |= {"parts": "*fp32", "grad": f"*{working}", "M": "i32", "height": "i32", "width": "i32"}
        types |= {"eps_squared": "fp32", "alpha": "fp32"}
        constants: dict[str, object] = {"P": P, "BLOCK_M": config.patches(P)}
        name, divisible = f"P{P} {stored} {working}", ("height", "width")
        warps = config.warps_for(P, torch.float32 if stored == "fp32" else torch.uint8)
        found.append(
            CompileCase(
                "reconstruction_loss", name, loss_kernel, types, constants, warps, divisible=divisible
            )
        )
    return found
