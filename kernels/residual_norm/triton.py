"""Triton kernels of `residual_norm`: one pass forward, one pass backward with partial sums in a fixed order.

Imported only when the back-end is used.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from camae.kernels._autograd import Maybe
from camae.kernels._compile_ahead import CompileCase
from camae.kernels._device import architecture, multiprocessors
from camae.kernels._launch import launch
from camae.kernels.residual_norm.registration import empty_gradients, empty_outputs


@dataclass(frozen=True)
class NormConfig:
    """Tiles for tokens of up to `width` columns.

    rows, warps: of a forward program. own_rows, own_warps, stages: rows that a backward program loads at once, its
    warps, and how many such loads are under way. programs: backward programs per multiprocessor, which share the rows.
    """

    width: int
    rows: int
    warps: int
    own_rows: int
    own_warps: int
    stages: int
    programs: int


WIDE = 1 << 16  # columns of the widest row that one program holds
CONFIGS = {
    "sm_80": (NormConfig(512, 4, 4, 1, 4, 1, 4), NormConfig(WIDE, 4, 4, 1, 4, 1, 4)),
    "sm_90": (NormConfig(512, 4, 2, 1, 4, 2, 8), NormConfig(WIDE, 1, 8, 1, 8, 2, 4)),
    "interpreter": (NormConfig(WIDE, 4, 1, 2, 1, 1, 3),),
}


def config_for(arch: str, width: int) -> NormConfig:
    """The frozen configuration for an architecture and a number of columns."""
    return next(config for config in CONFIGS[arch] if width <= config.width)


@triton.jit
def forward_kernel(
    x,  # (T, D)
    update,  # (T, D), or None: nothing is added
    gamma,  # (D,), or None
    factor,  # (B,) what stochastic depth leaves of a sample's update, or None
    segment,  # (T,) int64 sample of every row, with factor
    weight,  # (D,), or None: no norm
    bias,  # (D,), with weight
    y,  # (T, D), written with update
    normed,  # (T, D), written with weight
    T,
    D,
    eps,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK_D)
    inside = (row < T)[:, None] & (column < D)[None, :]
    at = row.to(tl.int64)[:, None] * D + column[None, :]
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if update is not None:
        change = tl.load(update + at, mask=inside, other=0.0).to(tl.float32)
        if gamma is not None:
            change *= tl.load(gamma + column, mask=column < D, other=0.0).to(tl.float32)[None, :]
        if factor is not None:
            sample = tl.load(segment + row, mask=row < T, other=0)
            change *= tl.load(factor + sample, mask=row < T, other=0.0).to(tl.float32)[:, None]
        stored = (value + change).to(y.dtype.element_ty)
        tl.store(y + at, stored, mask=inside)
        value = stored.to(tl.float32)  # what the backward pass will read
    if weight is not None:
        mean = tl.sum(value, 1) / D
        centered = tl.where(inside, value - mean[:, None], 0.0)
        rstd = tl.rsqrt(tl.sum(centered * centered, 1) / D + eps)
        w = tl.load(weight + column, mask=column < D, other=0.0).to(tl.float32)
        b = tl.load(bias + column, mask=column < D, other=0.0).to(tl.float32)
        out = centered * rstd[:, None] * w[None, :] + b[None, :]
        tl.store(normed + at, out.to(normed.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    grad_y,  # (T, D), or None: only the norm's branch has a gradient
    grad_normed,  # (T, D), with weight
    y,  # (T, D) what was normed, with weight
    update,  # (T, D), with gamma
    gamma,  # (D,), or None
    factor,  # (B,), or None
    segment,  # (T,) int64, with factor
    weight,  # (D,), or None: no norm
    grad_x,  # (T, D), written with weight
    grad_update,  # (T, D), or None, written
    sums,  # (programs, 3, D) float32: gradients of weight, bias and gamma, written
    T,
    D,
    eps,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    column = tl.arange(0, BLOCK_D)
    valid = column < D
    if weight is not None:
        sum_weight = tl.zeros((ROWS, BLOCK_D), tl.float32)
        sum_bias = tl.zeros((ROWS, BLOCK_D), tl.float32)
        w = tl.load(weight + column, mask=valid, other=0.0).to(tl.float32)[None, :]
    if gamma is not None:
        sum_gamma = tl.zeros((ROWS, BLOCK_D), tl.float32)
        scale = tl.load(gamma + column, mask=valid, other=0.0).to(tl.float32)[None, :]
    for start in tl.range(program * ROWS, T, programs * ROWS, num_stages=STAGES):
        row = start + tl.arange(0, ROWS)
        inside = (row < T)[:, None] & valid[None, :]
        at = row.to(tl.int64)[:, None] * D + column[None, :]
        g = tl.zeros((ROWS, BLOCK_D), tl.float32)
        if grad_y is not None:
            g = tl.load(grad_y + at, mask=inside, other=0.0).to(tl.float32)
        if weight is not None:
            value = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
            slope = tl.load(grad_normed + at, mask=inside, other=0.0).to(tl.float32)
            centered = tl.where(inside, value - (tl.sum(value, 1) / D)[:, None], 0.0)
            rstd = tl.rsqrt(tl.sum(centered * centered, 1) / D + eps)
            unit = centered * rstd[:, None]
            sum_weight += slope * unit
            sum_bias += slope
            slope *= w
            along = tl.sum(slope * unit, 1) / D
            g += rstd[:, None] * (slope - (tl.sum(slope, 1) / D)[:, None] - unit * along[:, None])
            tl.store(grad_x + at, g.to(grad_x.dtype.element_ty), mask=inside)
        if grad_update is not None:
            if factor is not None:
                sample = tl.load(segment + row, mask=row < T, other=0)
                g *= tl.load(factor + sample, mask=row < T, other=0.0).to(tl.float32)[:, None]
            if gamma is not None:
                sum_gamma += g * tl.load(update + at, mask=inside, other=0.0).to(tl.float32)
                g *= scale
            tl.store(grad_update + at, g.to(grad_update.dtype.element_ty), mask=inside)
    own = sums + program.to(tl.int64) * 3 * D + column
    if weight is not None:
        tl.store(own, tl.sum(sum_weight, 0), mask=valid)
        tl.store(own + D, tl.sum(sum_bias, 0), mask=valid)
    if gamma is not None:
        tl.store(own + 2 * D, tl.sum(sum_gamma, 0), mask=valid)


def _contiguous(x: Maybe) -> Maybe:
    return None if x is None else x.contiguous()


def residual_norm(
    x_TD: torch.Tensor,
    update_TD: torch.Tensor | None,
    gamma_D: torch.Tensor | None,
    factor_B: torch.Tensor | None,
    segment_T: torch.Tensor | None,
    weight_D: torch.Tensor | None,
    bias_D: torch.Tensor | None,
    eps: float,
    working: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the forward kernel: y (empty without an update) and normed (empty without a norm)."""
    y_TD, normed_TD = empty_outputs(x_TD, update_TD, gamma_D, weight_D, working)
    inputs = (x_TD, update_TD, gamma_D, factor_B, segment_T, weight_D, bias_D)
    T, D = x_TD.shape
    config = config_for(architecture(x_TD.device), D)
    if T:
        launch(
            forward_kernel,
            (triton.cdiv(T, config.rows),),
            *map(_contiguous, inputs),
            y_TD,
            normed_TD,
            T,
            D,
            eps,
            ROWS=config.rows,
            BLOCK_D=triton.next_power_of_2(D),
            num_warps=config.warps,
        )
    return y_TD, normed_TD


def residual_norm_backward(
    grad_y_TD: torch.Tensor | None,
    grad_normed_TD: torch.Tensor | None,
    y_TD: torch.Tensor,
    update_TD: torch.Tensor | None,
    gamma_D: torch.Tensor | None,
    factor_B: torch.Tensor | None,
    segment_T: torch.Tensor | None,
    weight_D: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launch the backward kernel: gradients of x (empty without a norm, as it is that of y), of the update, and (3, D).

    The last are those of weight, bias and gamma; rows of absent ones hold nothing.
    """
    grad_x_TD, grad_update_TD, _ = empty_gradients(y_TD, update_TD, weight_D)
    inputs = (grad_y_TD, grad_normed_TD, y_TD, update_TD, gamma_D, factor_B, segment_T, weight_D)
    T, D = y_TD.shape
    config = config_for(architecture(y_TD.device), D)
    programs = min(triton.cdiv(T, config.own_rows), config.programs * multiprocessors(y_TD.device))
    sums = torch.empty(programs, 3, D, dtype=torch.float32, device=y_TD.device)
    if T:
        launch(
            backward_kernel,
            (programs,),
            *map(_contiguous, inputs),
            grad_x_TD,
            None if update_TD is None else grad_update_TD,
            sums,
            T,
            D,
            eps,
            ROWS=config.own_rows,
            STAGES=config.stages,
            BLOCK_D=triton.next_power_of_2(D),
            num_warps=config.own_warps,
        )
    return grad_x_TD, grad_update_TD, sums.sum(0)


def compile_cases(arch: str) -> list[CompileCase]:
    """ViT-L and ViT-S widths: norm, residual, and both at once.

    Under autocast the stream is fp32 and branches are bf16 (fp16); without it both are fp32, or both bf16.
    """
    shapes = [(1024, "norm"), (1024, "residual"), (1024, "both"), (384, "both")]
    kinds = [(width, kind, "fp32", "bf16") for width, kind in shapes]
    kinds += [(width, kind, "fp32", "fp32") for width, kind in shapes]
    kinds += [(1024, "both", "fp32", "fp16"), (1024, "both", "bf16", "bf16")]
    return [
        case
        for width, kind, *dtypes in kinds
        for case in _cases(config_for(arch, width), width, kind, *dtypes)
    ]


def _cases(config: NormConfig, width: int, kind: str, stream: str, branch: str) -> list[CompileCase]:
    common = {"T": "i32", "D": "i32", "eps": "fp32"}
    residual = {"factor": "*fp32", "segment": "*i64", "gamma": "*fp32", "update": f"*{branch}"}
    norm = {"weight": "*fp32"}
    absent = dict.fromkeys((*residual, *norm, "bias", "y", "normed", "grad_y", "grad_normed", "grad_update"))
    added = ({} if kind == "norm" else residual) | ({} if kind == "residual" else norm)
    forward_types = {"x": f"*{stream}", **added, **common}
    backward_types = {"grad_x": f"*{stream}", "sums": "*fp32", **added, **common}
    if kind != "norm":
        forward_types |= {"y": f"*{stream}"}
        backward_types |= {"grad_y": f"*{stream}", "grad_update": f"*{branch}"}
    if kind != "residual":
        forward_types |= {"bias": "*fp32", "normed": f"*{branch}"}
        backward_types |= {"y": f"*{stream}", "grad_normed": f"*{branch}"}
    block = {"BLOCK_D": triton.next_power_of_2(width)}
    found = []
    own = {"ROWS": config.own_rows, "STAGES": config.stages}
    for kernel, types, tile, warps in (
        (forward_kernel, forward_types, block | {"ROWS": config.rows}, config.warps),
        (backward_kernel, backward_types, block | own, config.own_warps),
    ):
        missing = {n: None for n in kernel.arg_names if n in absent and n not in types}
        constants: dict[str, object] = {**missing, **tile}
        name = f"{kernel.__name__.removesuffix('_kernel')} {kind} D{width} {stream}/{branch}"
        found.append(
            CompileCase("residual_norm", name, kernel, types, constants, warps, divisible=("D",), mma=False)
        )
    return found
