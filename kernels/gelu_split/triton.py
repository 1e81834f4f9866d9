"""Triton kernels of `gelu_split`: bias + GELU on the first columns of a fused projection, and its backward pass.

Imported only when the back-end is used.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from camae.kernels._compile_ahead import CompileCase
from camae.kernels._device import architecture
from camae.kernels._launch import Kernel, launch


@dataclass(frozen=True)
class GeluConfig:
    """Rows and columns of a tile, and warps, of the forward and of the backward pass.

    parts: into how many parts the backward pass cuts the rows. stages: how many of its loads are under way.
    """

    rows: int
    columns: int
    warps: int
    own_rows: int
    own_columns: int
    own_warps: int
    parts: int
    stages: int


CONFIGS = {
    "sm_80": GeluConfig(16, 256, 8, 16, 256, 8, parts=64, stages=1),
    "sm_90": GeluConfig(4, 512, 8, 8, 512, 4, parts=256, stages=2),
    "interpreter": GeluConfig(8, 32, 1, 8, 32, 1, parts=2, stages=1),
}


@triton.jit
def normal_cdf(x):
    """The standard normal's distribution function, within 1.4e-7 in fp32; 0 and 1 beyond 5.2 standard deviations.

    cdf(x) = 1/2 + x P(t), t = 2 min(x^2, c^2) / c^2 - 1, c = 5.15: P is the minimax polynomial of degree 13, 20
    instructions in place of the 40 of erf (itself within 6e-8). GELU(x) = x * cdf(x), not its tanh form.
    """
    t = tl.minimum(x * x, 26.5225) * 0.07540767272 - 1.0
    p = t * -0.00041175863589160144 + 0.001101833302527666
    p = p * t - 0.0011198477586731315
    p = p * t + 0.0017202533781528473
    p = p * t - 0.004470192361623049
    p = p * t + 0.00806802324950695
    p = p * t - 0.012049829587340355
    p = p * t + 0.01756196655333042
    p = p * t - 0.024428917095065117
    p = p * t + 0.031894389539957047
    p = p * t - 0.04007747024297714
    p = p * t + 0.050403088331222534
    p = p * t - 0.0683692991733551
    p = p * t + 0.13726510107517242
    return tl.minimum(tl.maximum(x * p + 0.5, 0.0), 1.0)


@triton.jit
def forward_kernel(
    fused,  # (T, >= hidden), last dim contiguous
    bias,  # (hidden,), or None
    act,  # (T, hidden) contiguous, written
    T,
    fused_row,
    hidden,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < T)[:, None] & (column < hidden)[None, :]
    x = tl.load(fused + row[:, None] * fused_row + column[None, :], mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        x += tl.load(bias + column, mask=column < hidden, other=0.0).to(tl.float32)[None, :]
    value = x * normal_cdf(x)
    tl.store(act + row[:, None] * hidden + column[None, :], value.to(act.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows_per_part"])
def backward_kernel(
    grad_act,  # (T, hidden) contiguous
    fused,  # (T, >= hidden), last dim contiguous
    bias,  # (hidden,), or None
    grad_fused,  # (T, >= hidden), last dim contiguous; the first columns are written
    act,  # (T, hidden) contiguous, written; None: not wanted
    sums,  # (parts, hidden) float32 partial sums for the bias, written with bias
    T,
    fused_row,
    grad_fused_row,
    hidden,
    rows_per_part,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):
    part = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    valid = column < hidden
    if bias is not None:
        b = tl.load(bias + column, mask=valid, other=0.0).to(tl.float32)[None, :]
        total = tl.zeros((COLUMNS,), tl.float32)
    begin = part * rows_per_part
    for start in tl.range(begin, tl.minimum(begin + rows_per_part, T), ROWS, num_stages=STAGES):
        row = (start + tl.arange(0, ROWS)).to(tl.int64)
        inside = (row < T)[:, None] & valid[None, :]
        x = tl.load(fused + row[:, None] * fused_row + column[None, :], mask=inside, other=0.0)
        g = tl.load(grad_act + row[:, None] * hidden + column[None, :], mask=inside, other=0.0)
        x, g = x.to(tl.float32), g.to(tl.float32)
        if bias is not None:
            x += b
        cdf = normal_cdf(x)
        if act is not None:
            at = act + row[:, None] * hidden + column[None, :]
            tl.store(at, (x * cdf).to(act.dtype.element_ty), mask=inside)
        g *= cdf + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
        if bias is not None:
            total += tl.sum(g, 0)
        at = grad_fused + row[:, None] * grad_fused_row + column[None, :]
        tl.store(at, g.to(grad_fused.dtype.element_ty), mask=inside)
    if bias is not None:
        tl.store(sums + part.to(tl.int64) * hidden + column, total, mask=valid)


def forward(fused_TF: torch.Tensor, bias_h: torch.Tensor | None, hidden: int) -> torch.Tensor:
    """GELU of the first `hidden` columns plus bias, (T, hidden)."""
    T, config = fused_TF.shape[0], CONFIGS[architecture(fused_TF.device)]
    bias_h = None if bias_h is None else bias_h.contiguous()
    act_Th = fused_TF.new_empty(T, hidden)
    if act_Th.numel():
        launch(
            forward_kernel,
            (triton.cdiv(T, config.rows), triton.cdiv(hidden, config.columns)),
            fused_TF,
            bias_h,
            act_Th,
            T,
            fused_TF.stride(0),
            hidden,
            ROWS=config.rows,
            COLUMNS=config.columns,
            num_warps=config.warps,
        )
    return act_Th


def backward(
    grad_act_Th: torch.Tensor,
    fused_TF: torch.Tensor,
    bias_h: torch.Tensor | None,
    grad_fused_TF: torch.Tensor,
    act_Th: torch.Tensor | None,
) -> torch.Tensor:
    """Fill the first columns of `grad_fused_TF`, and `act_Th` where given; return the bias's gradient (hidden,)."""
    grad_act_Th = grad_act_Th.contiguous()
    bias_h = None if bias_h is None else bias_h.contiguous()
    (T, hidden), config = grad_act_Th.shape, CONFIGS[architecture(fused_TF.device)]
    per_part = triton.cdiv(triton.cdiv(T, config.parts), config.own_rows) * config.own_rows
    parts = triton.cdiv(T, per_part) if T else 0
    shape = (0 if bias_h is None else parts, hidden)
    sums = torch.empty(shape, dtype=torch.float32, device=fused_TF.device)
    if grad_act_Th.numel():
        launch(
            backward_kernel,
            (parts, triton.cdiv(hidden, config.own_columns)),
            grad_act_Th,
            fused_TF,
            bias_h,
            grad_fused_TF,
            act_Th,
            sums,
            T,
            fused_TF.stride(0),
            grad_fused_TF.stride(0),
            hidden,
            per_part,
            ROWS=config.own_rows,
            COLUMNS=config.own_columns,
            STAGES=config.stages,
            num_warps=config.own_warps,
        )
    return sums.sum(0)


def compile_cases(arch: str) -> list[CompileCase]:
    """bf16, fp16 and fp32, with and without a bias; the backward pass also with the activation recomputed."""
    shapes = [(dtype, bias) for dtype in ("bf16", "fp16", "fp32") for bias in (True, False)]
    return [case for dtype, bias in shapes for case in _cases(CONFIGS[arch], dtype, bias)]


def _cases(config: GeluConfig, dtype: str, bias: bool) -> list[CompileCase]:
    tile: dict[str, object] = {"ROWS": config.rows, "COLUMNS": config.columns}
    integers = dict.fromkeys(("T", "fused_row", "hidden"), "i32")
    added = {"bias": "*fp32"} if bias else {}
    constants: dict[str, object] = tile if bias else tile | {"bias": None}
    forward_types = {"fused": f"*{dtype}", "act": f"*{dtype}", **added, **integers}
    sums = {"grad_act": f"*{dtype}", "grad_fused": f"*{dtype}", "sums": "*fp32"}
    types = {**forward_types, **sums, "grad_fused_row": "i32", "rows_per_part": "i32"}
    without_act = {n: t for n, t in types.items() if n != "act"}
    own: dict[str, object] = {"ROWS": config.own_rows, "COLUMNS": config.own_columns, "STAGES": config.stages}
    name = f"{'bias' if bias else 'no bias'} {dtype}"
    return [
        _case(f"forward {name}", forward_kernel, forward_types, constants, config.warps),
        _case(f"backward {name}, recomputed", backward_kernel, types, constants | own, config.own_warps),
        _case(
            f"backward {name}",
            backward_kernel,
            without_act,
            constants | own | {"act": None},
            config.own_warps,
        ),
    ]


def _case(
    name: str, kernel: Kernel, types: dict[str, str], constants: dict[str, object], warps: int
) -> CompileCase:
    divisible = ("fused_row", "grad_fused_row", "hidden")
    return CompileCase("gelu_split", name, kernel, types, constants, warps, divisible=divisible, mma=False)
