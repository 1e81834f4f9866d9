"""Triton kernels of `lion`: the step of every parameter in one launch, and the global norm before it.

Tensors are reached through a table of addresses; a program handles one chunk of one tensor. Imported only when
the back-end is used.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from camae.kernels._compile_ahead import CompileCase
from camae.kernels._launch import launch

CHUNK = 2048
WARPS = 8
TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def square_kernel(
    addresses,  # (n, 4) int64: parameter, gradient, momentum, low-precision copy
    sizes,  # (n,) int64
    owner,  # (chunks,) int32, the tensor of each chunk
    first,  # (chunks,) int64, the chunk's first element
    sums,  # (chunks,) float32, written
    GRAD: tl.constexpr,
    CHUNK: tl.constexpr,
):
    chunk = tl.program_id(0)
    tensor = tl.load(owner + chunk)
    element = tl.load(first + chunk) + tl.arange(0, CHUNK)
    grad = tl.load(addresses + tensor * 4 + 1).to(tl.pointer_type(GRAD))
    g = tl.load(tl.multiple_of(grad, 16) + element, mask=element < tl.load(sizes + tensor), other=0.0)
    g = g.to(tl.float32)
    tl.store(sums + chunk, tl.sum(g * g, 0))


@triton.jit
def lion_kernel(
    addresses,  # (n, 4) int64: parameter, gradient, momentum, low-precision copy
    sizes,  # (n,) int64
    rates,  # (n, 2) float32: learning rate, weight decay
    owner,  # (chunks,) int32, the tensor of each chunk
    first,  # (chunks,) int64, the chunk's first element
    grad_scale,  # (1,) float32: the clipping factor; NaN: nothing is read or written
    beta1,
    beta2,
    GRAD: tl.constexpr,
    COPY: tl.constexpr,  # dtype of the copies, None without
    CHUNK: tl.constexpr,
):
    chunk = tl.program_id(0)
    tensor = tl.load(owner + chunk)
    element = tl.load(first + chunk) + tl.arange(0, CHUNK)
    scale = tl.load(grad_scale)
    inside = element < tl.where(scale == scale, tl.load(sizes + tensor), 0)  # NaN: none is
    row = addresses + tensor * 4
    param = tl.multiple_of(tl.load(row).to(tl.pointer_type(tl.float32)), 16) + element
    grad = tl.multiple_of(tl.load(row + 1).to(tl.pointer_type(GRAD)), 16) + element
    momentum = tl.multiple_of(tl.load(row + 2).to(tl.pointer_type(tl.float32)), 16) + element
    g = tl.load(grad, mask=inside, other=0.0).to(tl.float32) * scale
    m = tl.load(momentum, mask=inside, other=0.0)
    p = tl.load(param, mask=inside, other=0.0)
    rate = tl.load(rates + tensor * 2)
    decay = tl.load(rates + tensor * 2 + 1)
    update = m + (1 - beta1) * (g - m)
    sign = tl.where(update > 0, 1.0, tl.where(update < 0, -1.0, 0.0))
    p = p - rate * (sign + decay * p)
    tl.store(param, p, mask=inside)
    tl.store(momentum, m + (1 - beta2) * (g - m), mask=inside)
    if COPY is not None:
        copy = tl.multiple_of(tl.load(row + 3).to(tl.pointer_type(COPY)), 16) + element
        tl.store(copy, p.to(COPY), mask=inside)


class Chunks:
    """The static part of the tables for a list of tensors: sizes and which chunk belongs to which tensor."""

    def __init__(self, sizes: Sequence[int], device: torch.device):
        counts = torch.tensor([triton.cdiv(n, CHUNK) for n in sizes])
        owner = torch.repeat_interleave(torch.arange(len(sizes)), counts)
        starts = counts.cumsum(0) - counts
        self.sizes = torch.tensor(sizes, dtype=torch.int64).to(device)
        self.owner = owner.to(torch.int32).to(device)
        self.first = ((torch.arange(len(owner)) - starts[owner]) * CHUNK).to(device)
        self.count, self.device = len(owner), device


def addresses(columns: Sequence[Sequence[torch.Tensor | None]], device: torch.device) -> torch.Tensor:
    """(n, len(columns)) int64 table of tensor addresses, 0 for None."""
    rows = [[0 if x is None else x.data_ptr() for x in row] for row in zip(*columns, strict=True)]
    return torch.tensor(rows, dtype=torch.int64).to(device, non_blocking=True)


def sum_of_squares(table: torch.Tensor, chunks: Chunks, grad_dtype: torch.dtype) -> torch.Tensor:
    """The sum of squares of all gradients in the table, a scalar on the device (partial sums added in fp64)."""
    sums = torch.empty(chunks.count, dtype=torch.float32, device=chunks.device)
    launch(
        square_kernel,
        (chunks.count,),
        table,
        chunks.sizes,
        chunks.owner,
        chunks.first,
        sums,
        GRAD=TYPES[grad_dtype],
        CHUNK=CHUNK,
        num_warps=WARPS,
    )
    return sums.sum(dtype=torch.float64)


def step(
    table: torch.Tensor,
    chunks: Chunks,
    rates_N2: torch.Tensor,
    grad_scale: torch.Tensor,
    betas: tuple[float, float],
    grad_dtype: torch.dtype,
    copy_dtype: torch.dtype | None,
) -> None:
    """One Lion step in place for every tensor of the table."""
    launch(
        lion_kernel,
        (chunks.count,),
        table,
        chunks.sizes,
        rates_N2,
        chunks.owner,
        chunks.first,
        grad_scale,
        *betas,
        GRAD=TYPES[grad_dtype],
        COPY=None if copy_dtype is None else TYPES[copy_dtype],
        CHUNK=CHUNK,
        num_warps=WARPS,
    )


def compile_cases(arch: str) -> list[CompileCase]:
    """bf16 gradients with bf16 copies (training in bf16), and fp32 throughout."""
    tables = {"addresses": "*i64", "sizes": "*i64", "owner": "*i32", "first": "*i64"}
    found = []
    for name, grad, copy in (("bf16 copies", tl.bfloat16, tl.bfloat16), ("fp32", tl.float32, None)):
        types = {**tables, "rates": "*fp32", "grad_scale": "*fp32", "beta1": "fp32", "beta2": "fp32"}
        constants: dict[str, object] = {"GRAD": grad, "COPY": copy, "CHUNK": CHUNK}
        found.append(CompileCase("lion", name, lion_kernel, types, constants, WARPS, mma=False))
    types, constants = {**tables, "sums": "*fp32"}, {"GRAD": tl.bfloat16, "CHUNK": CHUNK}
    return [*found, CompileCase("lion_norm", "bf16", square_kernel, types, constants, WARPS, mma=False)]
