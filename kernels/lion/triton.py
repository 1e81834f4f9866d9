"""Triton kernels of `lion`: the step of every parameter in one launch, the global norm and its clipping before it.

Tensors are reached through a table of addresses; a program handles one chunk of one tensor. Imported only when
the back-end is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from camae.kernels._compile_ahead import CompileCase
from camae.kernels._launch import launch

CHUNK = 2048
CLIP_BLOCK = 2048
WARPS = 8
TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def chunk_pointers(row, COLUMN: tl.constexpr, DTYPE: tl.constexpr, element, ALIGNED: tl.constexpr):
    """Addresses of a chunk's elements in the tensor whose address is in this column of the table's row."""
    tensor = tl.load(row + COLUMN).to(tl.pointer_type(DTYPE))
    if ALIGNED:
        tensor = tl.multiple_of(tensor, 16)
    return tensor + element


@triton.jit
def load_chunk(at, inside, WHOLE: tl.constexpr):
    """Values of a chunk in float32; without a mask, hence 128 bits at a time, where the tensor fills it."""
    if WHOLE:
        return tl.load(at).to(tl.float32)
    else:
        return tl.load(at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def store_chunk(at, value, inside, WHOLE: tl.constexpr):
    """As `load_chunk`."""
    if WHOLE:
        tl.store(at, value)
    else:
        tl.store(at, value, mask=inside)


@triton.jit
def squares(
    row, begin, left, GRAD: tl.constexpr, CHUNK: tl.constexpr, ALIGNED: tl.constexpr, WHOLE: tl.constexpr
):
    """Sum of squares of a chunk of the gradient, of which `left` elements exist."""
    lane = tl.arange(0, CHUNK)
    g = load_chunk(chunk_pointers(row, 1, GRAD, begin + lane, ALIGNED), lane < left, WHOLE)
    return tl.sum(g * g, 0)


@triton.jit
def square_kernel(
    addresses,  # (n, 4) int64: parameter, gradient, momentum, low-precision copy
    sizes,  # (n,) int64
    owner,  # (chunks,) int32, the tensor of each chunk
    first,  # (chunks,) int64, the chunk's first element, a multiple of CHUNK
    sums,  # (chunks,) float32, written
    GRAD: tl.constexpr,
    CHUNK: tl.constexpr,
    ALIGNED: tl.constexpr,  # whether every address is a multiple of 16
):
    chunk = tl.program_id(0)
    tensor = tl.load(owner + chunk)
    begin = tl.multiple_of(tl.load(first + chunk), 16)
    left = tl.load(sizes + tensor) - begin
    row = addresses + tensor * 4
    if left >= CHUNK:
        tl.store(sums + chunk, squares(row, begin, left, GRAD, CHUNK, ALIGNED, True))
    else:
        tl.store(sums + chunk, squares(row, begin, left, GRAD, CHUNK, ALIGNED, False))


@triton.jit
def clip_kernel(
    sums,  # (n,) float32, sums of squares
    found_inf,  # (1,) float32, or None: the step is skipped where it is 1
    norm,  # (1,) float32, written
    scale,  # (1,) float32, written: the factor of the gradients, NaN for a step that is skipped
    n,
    clip_norm,
    BLOCK: tl.constexpr,
):
    # One program; partial sums added in fp64.
    lane = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, n, BLOCK):
        total += tl.load(sums + start + lane, mask=start + lane < n, other=0.0).to(tl.float64)
    length = tl.sqrt(tl.sum(total, 0)).to(tl.float32)
    factor = tl.minimum(clip_norm / (length + 1e-6), 1.0, propagate_nan=tl.PropagateNan.ALL)
    if found_inf is not None:
        factor = tl.where(tl.load(found_inf) > 0, float("nan"), factor)
    tl.store(norm, length)
    tl.store(scale, factor)


@triton.jit
def update_chunk(
    row,
    rates,
    begin,
    left,
    scale,
    beta1,
    beta2,
    GRAD: tl.constexpr,
    COPY: tl.constexpr,
    CHUNK: tl.constexpr,
    ALIGNED: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """One chunk's step, in place; `left` of its elements exist."""
    lane = tl.arange(0, CHUNK)
    element, inside = begin + lane, lane < left
    param = chunk_pointers(row, 0, tl.float32, element, ALIGNED)
    momentum = chunk_pointers(row, 2, tl.float32, element, ALIGNED)
    g = load_chunk(chunk_pointers(row, 1, GRAD, element, ALIGNED), inside, WHOLE) * scale
    m = load_chunk(momentum, inside, WHOLE)
    p = load_chunk(param, inside, WHOLE)
    update = m + (1 - beta1) * (g - m)
    sign = tl.where(update > 0, 1.0, tl.where(update < 0, -1.0, 0.0))
    p = p - tl.load(rates) * (sign + tl.load(rates + 1) * p)
    store_chunk(param, p, inside, WHOLE)
    store_chunk(momentum, m + (1 - beta2) * (g - m), inside, WHOLE)
    if COPY is not None:
        store_chunk(chunk_pointers(row, 3, COPY, element, ALIGNED), p.to(COPY), inside, WHOLE)


@triton.jit
def lion_kernel(
    addresses,  # (n, 4) int64: parameter, gradient, momentum, low-precision copy
    sizes,  # (n,) int64
    rates,  # (n, 2) float32: learning rate, weight decay
    owner,  # (chunks,) int32, the tensor of each chunk
    first,  # (chunks,) int64, the chunk's first element, a multiple of CHUNK
    grad_scale,  # (1,) float32: the clipping factor; NaN: nothing is read or written
    beta1,
    beta2,
    GRAD: tl.constexpr,
    COPY: tl.constexpr,  # dtype of the copies, None without
    CHUNK: tl.constexpr,
    ALIGNED: tl.constexpr,  # whether every address is a multiple of 16
):
    chunk = tl.program_id(0)
    tensor = tl.load(owner + chunk)
    begin = tl.multiple_of(tl.load(first + chunk), 16)
    scale = tl.load(grad_scale)
    left = tl.where(scale == scale, tl.load(sizes + tensor) - begin, 0)  # NaN: none is
    row, own = addresses + tensor * 4, rates + tensor * 2
    if left >= CHUNK:
        update_chunk(row, own, begin, left, scale, beta1, beta2, GRAD, COPY, CHUNK, ALIGNED, True)
    elif left > 0:
        update_chunk(row, own, begin, left, scale, beta1, beta2, GRAD, COPY, CHUNK, ALIGNED, False)


class Chunks:
    """The static part of the tables for a list of tensors: sizes and which chunk belongs to which tensor."""

    def __init__(self, sizes: Sequence[int], device: torch.device):
        counts = torch.tensor([triton.cdiv(n, CHUNK) for n in sizes])
        owner = torch.repeat_interleave(torch.arange(len(sizes)), counts)
        starts = counts.cumsum(0) - counts
        self.sizes = torch.tensor(sizes, dtype=torch.int64).to(device, non_blocking=True)
        self.owner = owner.to(torch.int32).to(device, non_blocking=True)
        self.first = ((torch.arange(len(owner)) - starts[owner]) * CHUNK).to(device, non_blocking=True)
        self.count, self.device = len(owner), device


class Table(NamedTuple):
    """Addresses of tensors, (n, columns) int64, 0 for None; whether each is a multiple of 16."""

    addresses: torch.Tensor
    aligned: bool


def address_table(columns: Sequence[Sequence[torch.Tensor | None]], device: torch.device) -> Table:
    """The table of `columns`, each a list of n tensors or None."""
    rows = [[0 if x is None else x.data_ptr() for x in row] for row in zip(*columns, strict=True)]
    aligned = all(address % 16 == 0 for row in rows for address in row)
    return Table(torch.tensor(rows, dtype=torch.int64).to(device, non_blocking=True), aligned)


def clipping(
    tables: Sequence[tuple[Table, Chunks, torch.dtype]], clip_norm: float, found_inf: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Global norm of all gradients and the factor that clips them, (1,) float32 each, on the device.

    tables: addresses, chunks and gradients' dtype of every launch. found_inf: scalar; 1 makes the factor NaN.
    """
    count, device = sum(chunks.count for _, chunks, _ in tables), tables[0][1].device
    sums = torch.empty(count, dtype=torch.float32, device=device)
    norm, scale = (torch.empty(1, dtype=torch.float32, device=device) for _ in range(2))
    begin = 0
    for table, chunks, grad_dtype in tables:
        launch(
            square_kernel,
            (chunks.count,),
            table.addresses,
            chunks.sizes,
            chunks.owner,
            chunks.first,
            sums[begin : begin + chunks.count],
            GRAD=TYPES[grad_dtype],
            CHUNK=CHUNK,
            ALIGNED=table.aligned,
            num_warps=WARPS,
        )
        begin += chunks.count
    found = None if found_inf is None else found_inf.to(device, torch.float32).reshape(1)
    launch(clip_kernel, (1,), sums, found, norm, scale, count, clip_norm, BLOCK=CLIP_BLOCK, num_warps=WARPS)
    return norm, scale


def step(
    table: Table,
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
        table.addresses,
        chunks.sizes,
        rates_N2,
        chunks.owner,
        chunks.first,
        grad_scale,
        *betas,
        GRAD=TYPES[grad_dtype],
        COPY=None if copy_dtype is None else TYPES[copy_dtype],
        CHUNK=CHUNK,
        ALIGNED=table.aligned,
        num_warps=WARPS,
    )


def compile_cases(arch: str) -> list[CompileCase]:
    """fp32 throughout, and 16-bit gradients with 16-bit copies (training in bf16 or fp16)."""
    tables = {"addresses": "*i64", "sizes": "*i64", "owner": "*i32", "first": "*i64"}
    found = []
    for name, grad, copy in (
        ("bf16 copies", tl.bfloat16, tl.bfloat16),
        ("fp16 copies", tl.float16, tl.float16),
        ("fp32", tl.float32, None),
    ):
        types = {**tables, "rates": "*fp32", "grad_scale": "*fp32", "beta1": "fp32", "beta2": "fp32"}
        constants: dict[str, object] = {"GRAD": grad, "COPY": copy, "CHUNK": CHUNK, "ALIGNED": True}
        found.append(CompileCase("lion", name, lion_kernel, types, constants, WARPS, mma=False))
        types = {**tables, "sums": "*fp32"}
        constants = {"GRAD": grad, "CHUNK": CHUNK, "ALIGNED": True}
        name = name.removesuffix(" copies")
        found.append(CompileCase("lion_norm", name, square_kernel, types, constants, WARPS, mma=False))
    types = {"sums": "*fp32", "norm": "*fp32", "scale": "*fp32", "n": "i32", "clip_norm": "fp32"}
    for name, given in (("clip", {}), ("clip, found_inf", {"found_inf": "*fp32"})):
        constants = {"BLOCK": CLIP_BLOCK} | ({} if given else {"found_inf": None})
        found.append(CompileCase("lion_norm", name, clip_kernel, types | given, constants, WARPS, mma=False))
    return found
