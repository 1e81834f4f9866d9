"""Triton kernels of `varlen_attention` and `normed_attention`: forward, and a backward pass in two kernels.

Softmax runs online in base 2 (Milakov & Gimelshein; FlashAttention-2). The backward pass computes the scores
twice, once by query tile for dq and once by key tile for dk and dv: 7 products instead of 5, in return every sum
has a fixed order, without atomics, and no fp32 buffer of dq exists. Imported only when the back-end is used.
The norms of q and k, where `q_weight` is given: head_norm_triton.py; k are then normed keys.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from camae.errors import CamaeError
from camae.kernels._compile_ahead import CompileCase
from camae.kernels._device import architecture
from camae.kernels._launch import launch
from camae.kernels.varlen_attention.head_norm_triton import (
    Norms,
    fold_norms,
    key_norm_case,
    normalized,
    normed_keys,
)

LOG2_E = 1.4426950408889634
HEAD_DIMS = (16, 32, 64, 128)


@dataclass(frozen=True)
class Tile:
    """Query rows, key rows, warps and pipeline stages of one kernel."""

    queries: int
    keys: int
    warps: int
    stages: int


@dataclass(frozen=True)
class AttentionConfig:
    """Tiles by kernel for one architecture and head dim.

    sm_90 at head dims 32 and 64: the fastest without spills of a sweep on an H100 (bench/tiles.py). The others by
    compile-ahead figures alone. short: of the forward pass over at most SHORT keys; None: as for longer ones.
    """

    forward: Tile
    queries: Tile
    keys: Tile
    short: Tile | None = None


SHORT = 512


CONFIGS = {
    ("sm_80", 16): AttentionConfig(
        Tile(128, 64, 4, 3), queries=Tile(128, 64, 4, 2), keys=Tile(64, 128, 4, 2)
    ),
    ("sm_80", 32): AttentionConfig(Tile(64, 64, 4, 3), queries=Tile(64, 64, 4, 2), keys=Tile(32, 64, 4, 2)),
    ("sm_80", 64): AttentionConfig(Tile(64, 64, 4, 3), queries=Tile(64, 32, 4, 2), keys=Tile(32, 64, 4, 2)),
    ("sm_80", 128): AttentionConfig(Tile(64, 32, 8, 3), queries=Tile(64, 64, 8, 2), keys=Tile(32, 64, 8, 2)),
    ("sm_90", 16): AttentionConfig(
        Tile(128, 128, 4, 3), queries=Tile(128, 64, 4, 2), keys=Tile(64, 128, 8, 2)
    ),
    ("sm_90", 32): AttentionConfig(
        Tile(128, 32, 4, 4), queries=Tile(128, 32, 4, 4), keys=Tile(32, 128, 4, 3)
    ),
    ("sm_90", 64): AttentionConfig(
        Tile(128, 64, 8, 3), queries=Tile(128, 64, 8, 3), keys=Tile(32, 64, 4, 2), short=Tile(128, 32, 4, 4)
    ),
    ("sm_90", 128): AttentionConfig(Tile(128, 64, 8, 3), queries=Tile(64, 64, 8, 2), keys=Tile(64, 64, 8, 2)),
}
# With norms of q and k inside, where the tiles above would spill registers or leave one block on a multiprocessor.
NORMED = {
    ("sm_80", 32): replace(CONFIGS["sm_80", 32], queries=Tile(64, 32, 4, 2)),
    ("sm_90", 16): replace(CONFIGS["sm_90", 16], forward=Tile(128, 64, 4, 3)),
    ("sm_90", 64): AttentionConfig(
        Tile(64, 128, 4, 3), queries=Tile(64, 32, 4, 4), keys=Tile(64, 64, 4, 3), short=Tile(128, 32, 4, 4)
    ),
    ("sm_90", 128): replace(CONFIGS["sm_90", 128], forward=Tile(64, 64, 8, 3), keys=Tile(32, 64, 8, 2)),
}
_INTERPRETER = AttentionConfig(Tile(32, 16, 1, 1), queries=Tile(16, 32, 1, 1), keys=Tile(32, 16, 1, 1))


def config_for(device: torch.device, head: int, dtype: torch.dtype, normed: bool = False) -> AttentionConfig:
    """The frozen configuration for a device, head dim and dtype, without or with norms of q and k.

    Raises CamaeError for float32 on CUDA: three tf32 products split every operand in two, and no tile at head dim 64
    then fits the registers.
    """
    arch = architecture(device)
    if arch == "interpreter":
        return _INTERPRETER
    if dtype not in (torch.bfloat16, torch.float16):
        raise CamaeError(
            f"varlen_attention: the kernel takes bfloat16 or float16, not {dtype}; use backend='reference'"
        )
    return _config(arch, head, normed)


def _config(arch: str, head: int, normed: bool) -> AttentionConfig:
    return NORMED.get((arch, head), CONFIGS[arch, head]) if normed else CONFIGS[arch, head]


@triton.jit
def locate(cu, tiles, heads, BLOCK: tl.constexpr):
    """(first row in the tile, head, sequence's first row, its length, sequence) of this program."""
    program = tl.program_id(0)
    tile = program % tiles
    head = (program // tiles) % heads
    sequence = program // (tiles * heads)
    begin = tl.load(cu + sequence).to(tl.int64)
    length = (tl.load(cu + sequence + 1) - begin).to(tl.int32)
    return tile * BLOCK, head, begin, length, sequence


@triton.jit
def load_rows(at, valid, MASKED: tl.constexpr):
    """Rows of a tile, zeros for those that are not valid where MASKED."""
    if MASKED:
        return tl.load(at, mask=valid[:, None], other=0.0)
    else:
        return tl.load(at)


@triton.jit
def forward_step(
    acc, top, total, q, k_at, v_at, left, scale_log2, BLOCK_N: tl.constexpr, MASKED: tl.constexpr
):
    """One key tile of the online softmax; `left` keys remain where MASKED. scale_log2 > 0."""
    valid = tl.arange(0, BLOCK_N) < left
    k = load_rows(k_at, valid, MASKED)
    v = load_rows(v_at, valid, MASKED)
    scores = tl.dot(q, tl.trans(k), input_precision="tf32x3")
    if MASKED:
        scores = tl.where(valid[None, :], scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1) * scale_log2)
    p = tl.exp2(scores * scale_log2 - new_top[:, None])  # one fma
    shrink = tl.exp2(top - new_top)
    total = total * shrink + tl.sum(p, 1)
    acc = acc * shrink[:, None]
    acc = tl.dot(p.to(v.dtype), v, acc, input_precision="tf32x3")
    return acc, new_top, total


@triton.jit
def forward_kernel(
    q,  # (T, H, d), last dim contiguous
    k,  # (S, H, d), last dim contiguous
    v,  # (S, H, d), last dim contiguous
    out,  # (T, H, d) contiguous, written
    lse,  # (H, T) float32, log2 of the softmax denominator, written
    cu_q,  # (B + 1,) int32
    cu_k,  # (B + 1,) int32
    q_weight,  # (d,) float32, or None: no norms
    q_bias,  # (d,) float32, with q_weight
    k_weight,  # (d,) float32, with q_weight
    q_row,
    q_head,
    k_row,
    k_head,
    v_row,
    v_head,
    T,
    heads,
    tiles,
    scale_log2,
    eps,
    HEAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    start, head, begin_q, length_q, sequence = locate(cu_q, tiles, heads, BLOCK_M)
    if start >= length_q:
        return
    begin_k = tl.load(cu_k + sequence).to(tl.int64)
    length_k = (tl.load(cu_k + sequence + 1) - begin_k).to(tl.int32)
    row = start + tl.arange(0, BLOCK_M)
    inside = row < length_q
    key = tl.arange(0, BLOCK_N)
    feature = tl.arange(0, HEAD)
    rows_q = begin_q + row
    q_tile = tl.load(
        q + rows_q[:, None] * q_row + head * q_head + feature[None, :], mask=inside[:, None], other=0.0
    )
    k_at = k + begin_k * k_row + head * k_head + key[:, None] * k_row + feature[None, :]
    v_at = v + begin_k * v_row + head * v_head + key[:, None] * v_row + feature[None, :]
    if q_weight is not None:
        folded, _ = fold_norms(q_tile, q_weight, q_bias, k_weight, eps, HEAD)
        q_tile = folded.to(q_tile.dtype)
    acc = tl.zeros((BLOCK_M, HEAD), tl.float32)
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    whole = (length_k // BLOCK_N) * BLOCK_N
    for _ in range(0, whole, BLOCK_N):
        acc, top, total = forward_step(acc, top, total, q_tile, k_at, v_at, 0, scale_log2, BLOCK_N, False)
        k_at += BLOCK_N * k_row
        v_at += BLOCK_N * v_row
    if whole < length_k:
        acc, top, total = forward_step(
            acc, top, total, q_tile, k_at, v_at, length_k - whole, scale_log2, BLOCK_N, True
        )
    safe = tl.where(total > 0, total, 1.0)  # a sequence without keys gives zeros
    at = out + rows_q[:, None] * (heads * HEAD) + head * HEAD + feature[None, :]
    tl.store(at, (acc / safe[:, None]).to(out.dtype.element_ty), mask=inside[:, None])
    tl.store(lse + head.to(tl.int64) * T + rows_q, top + tl.log2(safe), mask=inside)


@triton.jit
def query_gradient_step(
    acc,
    q,
    g,
    own_lse,
    own_delta,
    k_at,
    v_at,
    left,
    scale_log2,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
):
    """One key tile added to the query gradient (less its scale); `left` keys remain where MASKED."""
    valid = tl.arange(0, BLOCK_N) < left
    k = load_rows(k_at, valid, MASKED)
    v = load_rows(v_at, valid, MASKED)
    scores = tl.dot(q, tl.trans(k), input_precision="tf32x3")
    p = tl.exp2(scores * scale_log2 - own_lse[:, None])
    if MASKED:
        p = tl.where(valid[None, :], p, 0.0)
    slope = tl.dot(g, tl.trans(v), input_precision="tf32x3")
    ds = p * (slope - own_delta[:, None])
    return tl.dot(ds.to(k.dtype), k, acc, input_precision="tf32x3")


@triton.jit
def query_gradient_kernel(
    q,  # (T, H, d), last dim contiguous
    k,  # (S, H, d), last dim contiguous
    v,  # (S, H, d), last dim contiguous
    out,  # (T, H, d) contiguous
    grad_out,  # (T, H, d) contiguous
    lse,  # (H, T) float32
    delta,  # (H, T) float32, row sums of out * grad_out, written for the key kernel
    grad_q,  # (T, H, d), heads contiguous, written
    cu_q,  # (B + 1,) int32
    cu_k,  # (B + 1,) int32
    q_weight,  # (d,) float32, or None: no norms
    q_bias,  # (d,) float32, with q_weight
    k_weight,  # (d,) float32, with q_weight
    folded,  # (T, H, d) contiguous, with q_weight: the query tiles as they meet the keys, written
    sums,  # (programs, 3, d) float32, with q_weight: gradients of q_weight, q_bias, k_weight, added by program
    q_row,
    q_head,
    k_row,
    k_head,
    v_row,
    v_head,
    grad_q_row,
    T,
    heads,
    tiles,
    scale,
    eps,
    HEAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    start, head, begin_q, length_q, sequence = locate(cu_q, tiles, heads, BLOCK_M)
    if start >= length_q:
        return
    begin_k = tl.load(cu_k + sequence).to(tl.int64)
    length_k = (tl.load(cu_k + sequence + 1) - begin_k).to(tl.int32)
    row = start + tl.arange(0, BLOCK_M)
    inside = row < length_q
    rows_q = begin_q + row
    feature = tl.arange(0, HEAD)
    key = tl.arange(0, BLOCK_N)
    at = rows_q[:, None] * (heads * HEAD) + head * HEAD + feature[None, :]
    q_tile = tl.load(
        q + rows_q[:, None] * q_row + head * q_head + feature[None, :], mask=inside[:, None], other=0.0
    )
    g = tl.load(grad_out + at, mask=inside[:, None], other=0.0)
    o = tl.load(out + at, mask=inside[:, None], other=0.0)
    own_delta = tl.sum(o.to(tl.float32) * g.to(tl.float32), 1)
    per_row = head.to(tl.int64) * T + rows_q
    tl.store(delta + per_row, own_delta, mask=inside)
    own_lse = tl.load(lse + per_row, mask=inside, other=float("inf"))
    if q_weight is not None:
        folded_tile, _ = fold_norms(q_tile, q_weight, q_bias, k_weight, eps, HEAD)
        q_tile = folded_tile.to(q_tile.dtype)
        tl.store(folded + at, q_tile, mask=inside[:, None])
    k_at = k + begin_k * k_row + head * k_head + key[:, None] * k_row + feature[None, :]
    v_at = v + begin_k * v_row + head * v_head + key[:, None] * v_row + feature[None, :]
    scale_log2 = scale * 1.4426950408889634
    acc = tl.zeros((BLOCK_M, HEAD), tl.float32)
    if HEAD >= 128:  # one loop, masked: a second copy of its body would spill registers
        for begin in range(0, length_k, BLOCK_N):
            acc = query_gradient_step(
                acc,
                q_tile,
                g,
                own_lse,
                own_delta,
                k_at,
                v_at,
                length_k - begin,
                scale_log2,
                BLOCK_N,
                True,
            )
            k_at += BLOCK_N * k_row
            v_at += BLOCK_N * v_row
    else:
        whole = (length_k // BLOCK_N) * BLOCK_N
        for _ in range(0, whole, BLOCK_N):
            acc = query_gradient_step(
                acc, q_tile, g, own_lse, own_delta, k_at, v_at, 0, scale_log2, BLOCK_N, False
            )
            k_at += BLOCK_N * k_row
            v_at += BLOCK_N * v_row
        if whole < length_k:
            acc = query_gradient_step(
                acc,
                q_tile,
                g,
                own_lse,
                own_delta,
                k_at,
                v_at,
                length_k - whole,
                scale_log2,
                BLOCK_N,
                True,
            )
    acc *= scale
    if q_weight is not None:
        raw = tl.load(
            q + rows_q[:, None] * q_row + head * q_head + feature[None, :], mask=inside[:, None], other=0.0
        )
        unit, rstd_q = normalized(raw.to(tl.float32), eps, HEAD)
        weight = tl.load(q_weight + feature)
        own = sums + tl.program_id(0).to(tl.int64) * (3 * HEAD) + feature
        qn = unit * weight[None, :] + tl.load(q_bias + feature)[None, :]
        tl.store(own + 2 * HEAD, tl.sum(qn * acc, 0))
        acc *= tl.load(k_weight + feature)[None, :]
        tl.store(own, tl.sum(unit * acc, 0))
        tl.store(own + HEAD, tl.sum(acc, 0))
        acc *= weight[None, :]
        along = tl.sum(acc * unit, 1) / HEAD
        acc = rstd_q[:, None] * (acc - (tl.sum(acc, 1) / HEAD)[:, None] - unit * along[:, None])
    at = grad_q + rows_q[:, None] * grad_q_row + head * HEAD + feature[None, :]
    tl.store(at, acc.to(grad_q.dtype.element_ty), mask=inside[:, None])


@triton.jit
def key_gradient_kernel(
    q,  # (T, H, d), last dim contiguous; with key_rstd the folded ones
    k,  # (S, H, d), last dim contiguous
    v,  # (S, H, d), last dim contiguous
    grad_out,  # (T, H, d) contiguous
    lse,  # (H, T) float32
    delta,  # (H, T) float32
    grad_k,  # (S, H, d), heads contiguous, written
    grad_v,  # (S, H, d), heads contiguous, written
    cu_q,  # (B + 1,) int32
    cu_k,  # (B + 1,) int32
    key_rstd,  # (H, S) float32, or None: no norms
    q_row,
    q_head,
    k_row,
    k_head,
    v_row,
    v_head,
    grad_k_row,
    grad_v_row,
    T,
    S,
    heads,
    tiles,
    scale,
    HEAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    start, head, begin_k, length_k, sequence = locate(cu_k, tiles, heads, BLOCK_N)
    if start >= length_k:
        return
    begin_q = tl.load(cu_q + sequence).to(tl.int64)
    length_q = (tl.load(cu_q + sequence + 1) - begin_q).to(tl.int32)
    key = start + tl.arange(0, BLOCK_N)
    inside = key < length_k
    rows_k = begin_k + key
    feature = tl.arange(0, HEAD)
    row = tl.arange(0, BLOCK_M)
    k_tile = tl.load(
        k + rows_k[:, None] * k_row + head * k_head + feature[None, :], mask=inside[:, None], other=0.0
    )
    v_tile = tl.load(
        v + rows_k[:, None] * v_row + head * v_head + feature[None, :], mask=inside[:, None], other=0.0
    )
    q_at = q + begin_q * q_row + head * q_head + row[:, None] * q_row + feature[None, :]
    g_at = grad_out + (begin_q + row)[:, None] * (heads * HEAD) + head * HEAD + feature[None, :]
    per_row = head.to(tl.int64) * T + begin_q + row
    scale_log2 = scale * 1.4426950408889634
    acc_k = tl.zeros((BLOCK_N, HEAD), tl.float32)
    acc_v = tl.zeros((BLOCK_N, HEAD), tl.float32)
    for begin in range(0, length_q, BLOCK_M):
        valid = row < length_q - begin
        q_tile = tl.load(q_at, mask=valid[:, None], other=0.0)
        g = tl.load(g_at, mask=valid[:, None], other=0.0)
        own_lse = tl.load(
            lse + per_row + begin, mask=valid, other=float("inf")
        )  # exp2(-inf) = 0 past the end
        own_delta = tl.load(delta + per_row + begin, mask=valid, other=0.0)
        scores = tl.dot(k_tile, tl.trans(q_tile), input_precision="tf32x3")
        p = tl.exp2(scores * scale_log2 - own_lse[None, :])
        acc_v = tl.dot(p.to(g.dtype), g, acc_v, input_precision="tf32x3")
        slope = tl.dot(v_tile, tl.trans(g), input_precision="tf32x3")
        ds = (p * (slope - own_delta[None, :])).to(q_tile.dtype)
        acc_k = tl.dot(ds, q_tile, acc_k, input_precision="tf32x3")
        q_at += BLOCK_M * q_row
        g_at += BLOCK_M * heads * HEAD
    column = head * HEAD + feature
    at = grad_v + rows_k[:, None] * grad_v_row + column[None, :]
    tl.store(at, acc_v.to(grad_v.dtype.element_ty), mask=inside[:, None])  # first: its registers are needed
    acc_k *= scale
    if key_rstd is not None:
        unit = tl.load(
            k + rows_k[:, None] * k_row + head * k_head + feature[None, :], mask=inside[:, None], other=0.0
        ).to(tl.float32)
        rstd = tl.load(key_rstd + head.to(tl.int64) * S + rows_k, mask=inside, other=0.0)
        along = tl.sum(acc_k * unit, 1) / HEAD
        acc_k = rstd[:, None] * (acc_k - (tl.sum(acc_k, 1) / HEAD)[:, None] - unit * along[:, None])
    at = grad_k + rows_k[:, None] * grad_k_row + column[None, :]
    tl.store(at, acc_k.to(grad_k.dtype.element_ty), mask=inside[:, None])


def _strides(*tensors: torch.Tensor) -> tuple[int, ...]:
    return tuple(stride for x in tensors for stride in x.stride()[:2])


class Problem(NamedTuple):
    """Attention over a packed batch: q (T, H, d), k and v (S, H, d); with norms raw queries and normed keys.

    rstd_HS: 1 / spread of the raw keys, with norms; the gradient needs it. tiles: None: those of the device.
    """

    q_THd: torch.Tensor
    k_SHd: torch.Tensor
    v_SHd: torch.Tensor
    cu_q: torch.Tensor
    cu_k: torch.Tensor
    max_q: int
    max_k: int
    scale: float
    norms: Norms | None = None
    rstd_HS: torch.Tensor | None = None
    tiles: AttentionConfig | None = None

    @property
    def config(self) -> AttentionConfig:
        """`tiles`, or the frozen ones for the device, the head dim, and whether there are norms."""
        if self.tiles is not None:
            return self.tiles
        return config_for(self.q_THd.device, self.q_THd.shape[2], self.q_THd.dtype, self.norms is not None)

    @property
    def vectors(self) -> tuple[torch.Tensor | None, ...]:
        """Weight and bias of q's norm, weight of k's."""
        norms = self.norms
        return (None, None, None) if norms is None else (norms.q_weight, norms.q_bias, norms.k_weight)

    @property
    def eps(self) -> float:
        """Of the norms."""
        return 0.0 if self.norms is None else self.norms.eps


class Buffers(NamedTuple):
    """Gradients of q (T, H, d), k and v (S, H, d) to be written, each row contiguous over heads."""

    grad_q: torch.Tensor
    grad_k: torch.Tensor
    grad_v: torch.Tensor


def separate_buffers(q_THd: torch.Tensor, k_SHd: torch.Tensor, v_SHd: torch.Tensor) -> Buffers:
    """Three contiguous gradients."""
    return Buffers(*(x.new_empty(x.shape) for x in (q_THd, k_SHd, v_SHd)))


def shared_buffers(q_THd: torch.Tensor, k_SHd: torch.Tensor, v_SHd: torch.Tensor) -> Buffers:
    """Gradients laid out as q, k and v are where those are columns of one (T, F) product, else three of their own.

    The gradient of the product is then complete with its other columns, and no copy follows.
    """
    tensors = (q_THd, k_SHd, v_SHd)
    (T, H, d), row = q_THd.shape, q_THd.stride(0)
    whole = q_THd.untyped_storage()
    columns = [x.storage_offset() for x in tensors]
    is_product = (
        T * row * q_THd.element_size() == whole.nbytes()
        and row >= 3 * H * d
        and all(x.untyped_storage().data_ptr() == whole.data_ptr() for x in tensors)
        and all(x.shape == q_THd.shape and x.stride() == (row, d, 1) for x in tensors)
        and all(b - a >= H * d for a, b in pairwise(sorted(columns)))
        and max(columns) + H * d <= row
    )
    if not is_product:
        return separate_buffers(*tensors)
    grad_TF = q_THd.new_empty(T, row)
    return Buffers(*(grad_TF[:, c : c + H * d].unflatten(1, (H, d)) for c in columns))


def _tile_options(tile: Tile, head_dim: int) -> dict[str, int]:
    return {
        "HEAD": head_dim,
        "BLOCK_M": tile.queries,
        "BLOCK_N": tile.keys,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def _forward(a: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """Output (T, H, d) and log2 of the softmax denominators (H, T), with norms less a constant by row."""
    if a.scale <= 0:
        raise CamaeError(
            f"varlen_attention: the kernel needs scale > 0, not {a.scale}; use backend='reference'"
        )
    (T, H, d), config = a.q_THd.shape, a.config
    tile = config.short if config.short is not None and a.max_k <= SHORT else config.forward
    out_THd = a.q_THd.new_empty(T, H, d)
    lse_HT = a.q_THd.new_empty(H, T, dtype=torch.float32)
    tiles = triton.cdiv(a.max_q, tile.queries)
    if T and tiles:
        launch(
            forward_kernel,
            (tiles * H * (len(a.cu_q) - 1),),
            a.q_THd,
            a.k_SHd,
            a.v_SHd,
            out_THd,
            lse_HT,
            a.cu_q,
            a.cu_k,
            *a.vectors,
            *_strides(a.q_THd, a.k_SHd, a.v_SHd),
            T,
            H,
            tiles,
            a.scale * LOG2_E,
            a.eps,
            **_tile_options(tile, d),
        )
    return out_THd, lse_HT


def _backward(
    a: Problem, grad_THd: torch.Tensor, out_THd: torch.Tensor, lse_HT: torch.Tensor, buffers: Buffers
) -> torch.Tensor | None:
    """Fill the gradients of q, k and v; return (3, d) of the norms' vectors. Always deterministic."""
    grad_THd, delta_HT = grad_THd.contiguous(), torch.empty_like(lse_HT)
    folded_THd, sums = _query_gradient(a, grad_THd, out_THd, lse_HT, delta_HT, buffers.grad_q)
    _key_gradient(a, grad_THd, folded_THd, lse_HT, delta_HT, buffers.grad_k, buffers.grad_v)
    return None if sums is None else sums.sum(0)


def _query_gradient(
    a: Problem,
    grad_THd: torch.Tensor,
    out_THd: torch.Tensor,
    lse_HT: torch.Tensor,
    delta_HT: torch.Tensor,
    grad_q: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Fill the gradient of q; the queries that meet the keys (q itself without norms), sums of the norms' gradients.

    Fills `delta_HT`: the row sums of out * grad, (H, T) float32 (FlashAttention-2's D).
    """
    (T, H, d), B, tile = a.q_THd.shape, len(a.cu_q) - 1, a.config.queries
    tiles = triton.cdiv(a.max_q, tile.queries)
    folded_THd = sums = None
    if a.norms is not None:
        folded_THd = a.q_THd.new_empty(T, H, d)
        # Zeros: programs past the end of a short sequence write nothing.
        sums = torch.zeros(tiles * H * B, 3, d, dtype=torch.float32, device=a.q_THd.device)
    if T and tiles:
        launch(
            query_gradient_kernel,
            (tiles * H * B,),
            a.q_THd,
            a.k_SHd,
            a.v_SHd,
            out_THd,
            grad_THd,
            lse_HT,
            delta_HT,
            grad_q,
            a.cu_q,
            a.cu_k,
            *a.vectors,
            folded_THd,
            sums,
            *_strides(a.q_THd, a.k_SHd, a.v_SHd),
            grad_q.stride(0),
            T,
            H,
            tiles,
            a.scale,
            a.eps,
            **_tile_options(tile, d),
        )
    return a.q_THd if folded_THd is None else folded_THd, sums


def _key_gradient(
    a: Problem,
    grad_THd: torch.Tensor,
    folded_THd: torch.Tensor,
    lse_HT: torch.Tensor,
    delta_HT: torch.Tensor,
    grad_k: torch.Tensor,
    grad_v: torch.Tensor,
) -> None:
    """Fill the gradients of k and v."""
    (S, H, d), B, tile = a.k_SHd.shape, len(a.cu_q) - 1, a.config.keys
    tiles = triton.cdiv(a.max_k, tile.keys)
    if S and tiles:
        launch(
            key_gradient_kernel,
            (tiles * H * B,),
            folded_THd,
            a.k_SHd,
            a.v_SHd,
            grad_THd,
            lse_HT,
            delta_HT,
            grad_k,
            grad_v,
            a.cu_q,
            a.cu_k,
            a.rstd_HS,
            *_strides(folded_THd, a.k_SHd, a.v_SHd),
            grad_k.stride(0),
            grad_v.stride(0),
            a.q_THd.shape[0],
            S,
            H,
            tiles,
            a.scale,
            **_tile_options(tile, d),
        )


def attention(
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    max_q: int,
    max_k: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the forward kernel without norms."""
    return _forward(Problem(q_THd, k_SHd, v_SHd, cu_q, cu_k, max_q, max_k, scale))


def attention_backward(
    grad_THd: torch.Tensor,
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    out_THd: torch.Tensor,
    lse_HT: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    max_q: int,
    max_k: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launch both backward kernels without norms; three gradients of their own."""
    problem = Problem(q_THd, k_SHd, v_SHd, cu_q, cu_k, max_q, max_k, scale)
    buffers = separate_buffers(q_THd, k_SHd, v_SHd)
    _backward(problem, grad_THd, out_THd, lse_HT, buffers)
    return buffers.grad_q, buffers.grad_k, buffers.grad_v


def _norms(q_weight_d: torch.Tensor, q_bias_d: torch.Tensor, k_weight_d: torch.Tensor, eps: float) -> Norms:
    q_weight, q_bias, k_weight = (x.float().contiguous() for x in (q_weight_d, q_bias_d, k_weight_d))
    return Norms(q_weight, q_bias, k_weight, eps)


def normed_attention(
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    q_weight_d: torch.Tensor,
    q_bias_d: torch.Tensor,
    k_weight_d: torch.Tensor,
    k_bias_d: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the kernels of the keys' norm and of the forward pass with norms."""
    normed_SHd, rstd_HS = normed_keys(k_SHd, eps)
    norms = _norms(q_weight_d, q_bias_d, k_weight_d, eps)
    return _forward(Problem(q_THd, normed_SHd, v_SHd, cu_q, cu_k, max_q, max_k, scale, norms, rstd_HS))


def _normed_backward(
    buffers: Buffers,
    grad_THd: torch.Tensor,
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    q_weight_d: torch.Tensor,
    q_bias_d: torch.Tensor,
    k_weight_d: torch.Tensor,
    k_bias_d: torch.Tensor,
    out_THd: torch.Tensor,
    lse_HT: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    # The normed keys again: one pass over k, in place of saving as much as k for every layer.
    normed_SHd, rstd_HS = normed_keys(k_SHd, eps)
    norms = _norms(q_weight_d, q_bias_d, k_weight_d, eps)
    problem = Problem(q_THd, normed_SHd, v_SHd, cu_q, cu_k, max_q, max_k, scale, norms, rstd_HS)
    sums = _backward(problem, grad_THd, out_THd, lse_HT, buffers)
    return *buffers, sums


def normed_attention_backward(
    grad_THd: torch.Tensor,
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    q_weight_d: torch.Tensor,
    q_bias_d: torch.Tensor,
    k_weight_d: torch.Tensor,
    k_bias_d: torch.Tensor,
    out_THd: torch.Tensor,
    lse_HT: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Launch both backward kernels with norms; three gradients of their own."""
    buffers = separate_buffers(q_THd, k_SHd, v_SHd)
    rest: tuple[Any, ...] = (out_THd, lse_HT, cu_q, cu_k, max_q, max_k, scale, eps)
    vectors = (q_weight_d, q_bias_d, k_weight_d, k_bias_d)
    return _normed_backward(buffers, grad_THd, q_THd, k_SHd, v_SHd, *vectors, *rest)


def normed_attention_backward_in_place(
    grad_THd: torch.Tensor, q_THd: torch.Tensor, k_SHd: torch.Tensor, v_SHd: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """As `normed_attention_backward`; the gradients may be columns of one product's (`shared_buffers`)."""
    buffers = shared_buffers(q_THd, k_SHd, v_SHd)
    return _normed_backward(buffers, grad_THd, q_THd, k_SHd, v_SHd, *rest)


def compile_cases(arch: str) -> list[CompileCase]:
    """Every head dim in bf16 without and with the norms of q and k, those of the presets in fp16."""
    shapes = [(head, normed, "bf16") for head in HEAD_DIMS for normed in (False, True)]
    shapes += [(head, normed, "fp16") for head in (32, 64) for normed in (False, True)]
    return [case for shape in shapes for case in _compile_cases(arch, *shape)]


def _compile_cases(arch: str, head: int, normed: bool, dtype: str) -> list[CompileCase]:
    found, config = [], _config(arch, head, normed)
    strides = ("q_row", "q_head", "k_row", "k_head", "v_row", "v_head")
    written_rows = ("grad_q_row", "grad_k_row", "grad_v_row")
    integers = dict.fromkeys((*strides, *written_rows, "T", "S", "heads", "tiles"), "i32")
    sequences = {"cu_q": "*i32", "cu_k": "*i32", "lse": "*fp32"}
    vectors = ("key_rstd", "q_weight", "q_bias", "k_weight", "sums")
    short = [] if config.short is None else [(forward_kernel, config.short, ("q", "k", "v", "out"))]
    for kernel, tile, written in (
        *short,
        (forward_kernel, config.forward, ("q", "k", "v", "out")),
        (query_gradient_kernel, config.queries, ("q", "k", "v", "out", "grad_out", "grad_q")),
        (key_gradient_kernel, config.keys, ("q", "k", "v", "grad_out", "grad_k", "grad_v")),
    ):
        forwards = kernel is forward_kernel
        types = {**sequences, **integers, **dict.fromkeys(written, f"*{dtype}"), "eps": "fp32"}
        types |= {"scale_log2": "fp32"} if forwards else {"scale": "fp32", "delta": "*fp32"}
        constants: dict[str, object] = {"HEAD": head, "BLOCK_M": tile.queries, "BLOCK_N": tile.keys}
        if normed:
            types |= {**dict.fromkeys(vectors, "*fp32"), "folded": f"*{dtype}"}
        else:
            constants |= {n: None for n in (*vectors, "folded") if n in kernel.arg_names}
        name = f"{kernel.__name__.removesuffix('_kernel')} d{head} {dtype}{', normed' if normed else ''}"
        name += ", short" if tile is config.short else ""
        found.append(
            CompileCase(
                "varlen_attention",
                name,
                kernel,
                types,
                constants,
                tile.warps,
                tile.stages,
                (*strides, *written_rows),
            )
        )
    if normed:
        found.append(key_norm_case(head, dtype))
    return found
