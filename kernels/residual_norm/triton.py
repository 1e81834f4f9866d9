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
from camae.kernels._device import architecture
from camae.kernels._launch import launch
from camae.kernels.residual_norm.registration import empty_gradients, empty_outputs


@dataclass(frozen=True)
class NormConfig:
    """Rows of a forward program, warps, and how many backward programs share the rows (4 per multiprocessor)."""

    rows: int
    warps: int
    programs: int


CONFIGS = {
    "sm_80": NormConfig(rows=4, warps=4, programs=432),
    "sm_90": NormConfig(rows=4, warps=4, programs=528),
    "interpreter": NormConfig(rows=4, warps=1, programs=3),
}


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
    grad_x,  # (T, D), written
    grad_update,  # (T, D), or None, written
    sums,  # (programs, 3, D) float32: gradients of weight, bias and gamma, written
    T,
    D,
    eps,
    BLOCK_D: tl.constexpr,
):
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    column = tl.arange(0, BLOCK_D)
    valid = column < D
    sum_weight = tl.zeros((BLOCK_D,), tl.float32)
    sum_bias = tl.zeros((BLOCK_D,), tl.float32)
    sum_gamma = tl.zeros((BLOCK_D,), tl.float32)
    if weight is not None:
        w = tl.load(weight + column, mask=valid, other=0.0).to(tl.float32)
    if gamma is not None:
        scale = tl.load(gamma + column, mask=valid, other=0.0).to(tl.float32)
    at = program.to(tl.int64) * D + column
    for row in range(program, T, programs):
        g = tl.zeros((BLOCK_D,), tl.float32)
        if grad_y is not None:
            g = tl.load(grad_y + at, mask=valid, other=0.0).to(tl.float32)
        if weight is not None:
            value = tl.load(y + at, mask=valid, other=0.0).to(tl.float32)
            slope = tl.load(grad_normed + at, mask=valid, other=0.0).to(tl.float32)
            centered = tl.where(valid, value - tl.sum(value, 0) / D, 0.0)
            rstd = tl.rsqrt(tl.sum(centered * centered, 0) / D + eps)
            unit = centered * rstd
            sum_weight += slope * unit
            sum_bias += slope
            slope *= w
            g += rstd * (slope - tl.sum(slope, 0) / D - unit * (tl.sum(slope * unit, 0) / D))
        tl.store(grad_x + at, g.to(grad_x.dtype.element_ty), mask=valid)
        if grad_update is not None:
            if factor is not None:
                g *= tl.load(factor + tl.load(segment + row)).to(tl.float32)
            if gamma is not None:
                sum_gamma += g * tl.load(update + at, mask=valid, other=0.0).to(tl.float32)
                g *= scale
            tl.store(grad_update + at, g.to(grad_update.dtype.element_ty), mask=valid)
        at += programs.to(tl.int64) * D
    own = sums + program.to(tl.int64) * 3 * D + column
    tl.store(own, sum_weight, mask=valid)
    tl.store(own + D, sum_bias, mask=valid)
    tl.store(own + 2 * D, sum_gamma, mask=valid)


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
    config = CONFIGS[architecture(x_TD.device)]
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
    """Launch the backward kernel: gradients of x, of the update, and (3, D) of weight, bias and gamma."""
    grad_x_TD, grad_update_TD, _ = empty_gradients(y_TD, update_TD)
    inputs = (grad_y_TD, grad_normed_TD, y_TD, update_TD, gamma_D, factor_B, segment_T, weight_D)
    T, D = grad_x_TD.shape
    config = CONFIGS[architecture(grad_x_TD.device)]
    programs = min(T, config.programs)
    sums = torch.empty(programs, 3, D, dtype=torch.float32, device=grad_x_TD.device)
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
            BLOCK_D=triton.next_power_of_2(D),
            num_warps=config.warps,
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
    return [case for width, kind, *dtypes in kinds for case in _cases(CONFIGS[arch], width, kind, *dtypes)]


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
    for kernel, types, tile in (
        (forward_kernel, forward_types, block | {"ROWS": config.rows}),
        (backward_kernel, backward_types, block),
    ):
        missing = {n: None for n in kernel.arg_names if n in absent and n not in types}
        constants: dict[str, object] = {**missing, **tile}
        name = f"{kernel.__name__.removesuffix('_kernel')} {kind} D{width} {stream}/{branch}"
        found.append(
            CompileCase(
                "residual_norm", name, kernel, types, constants, config.warps, divisible=("D",), mma=False
            )
        )
    return found
