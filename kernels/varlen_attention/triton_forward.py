"""Triton kernel of attention's forward pass: softmax runs online in base 2 (Milakov & Gimelshein; FlashAttention-2)."""

from __future__ import annotations

import triton
import triton.language as tl

from camae.kernels.varlen_attention.head_norm_triton import fold_norms


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
