"""Triton kernels of attention's backward pass: one by query tile for dq, one by key tile for dk and dv.

The scores are computed twice: 7 products instead of 5; in return every sum has a fixed order, without atomics, and no
fp32 buffer of dq exists. The form with 5 products gives `grad_q` to the key kernel and rounds it in triton_atomic.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from camae.kernels.varlen_attention.head_norm_triton import fold_norms, normalized
from camae.kernels.varlen_attention.triton_forward import load_rows, locate


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
def query_norm_gradient(acc, raw, q_weight, q_bias, k_weight, own_sums, eps, HEAD: tl.constexpr):
    """Gradient of raw queries (rows, HEAD) from that of the folded ones; (3, HEAD) of the vectors to `own_sums`."""
    feature = tl.arange(0, HEAD)
    unit, rstd_q = normalized(raw.to(tl.float32), eps, HEAD)
    weight = tl.load(q_weight + feature)
    qn = unit * weight[None, :] + tl.load(q_bias + feature)[None, :]
    tl.store(own_sums + 2 * HEAD + feature, tl.sum(qn * acc, 0))
    acc *= tl.load(k_weight + feature)[None, :]
    tl.store(own_sums + feature, tl.sum(unit * acc, 0))
    tl.store(own_sums + HEAD + feature, tl.sum(acc, 0))
    acc *= weight[None, :]
    along = tl.sum(acc * unit, 1) / HEAD
    return rstd_q[:, None] * (acc - (tl.sum(acc, 1) / HEAD)[:, None] - unit * along[:, None])


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
        own = sums + tl.program_id(0).to(tl.int64) * (3 * HEAD)
        acc = query_norm_gradient(acc, raw, q_weight, q_bias, k_weight, own, eps, HEAD)
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
    grad_q,  # (T, H, d) float32 contiguous, zeros, added to by atomics less its scale; or None: not computed here
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
    if grad_q is not None:
        dq_at = grad_q + (begin_q + row)[:, None] * (heads * HEAD) + head * HEAD + feature[None, :]
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
        if grad_q is not None:
            part = tl.dot(tl.trans(ds), k_tile, input_precision="tf32x3")
            tl.atomic_add(dq_at, part, mask=valid[:, None], sem="relaxed")
            dq_at += BLOCK_M * heads * HEAD
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
