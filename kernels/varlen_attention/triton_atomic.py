"""Triton kernels around attention's backward pass with 5 products, in which the key kernel adds dq by atomics.

Before it one pass over the queries' rows, after it another: the fp32 buffer of dq is rounded to the inputs' dtype. The
order of additions is not fixed, so neither are the last bits of dq (FlashAttention-2's backward pass).
"""

from __future__ import annotations

import triton
import triton.language as tl

from camae.kernels.varlen_attention.head_norm_triton import fold_norms
from camae.kernels.varlen_attention.triton_backward import query_norm_gradient

QUERY_ROWS = 64


@triton.jit
def query_prepare_kernel(
    q,  # (T, H, d), last dim contiguous
    out,  # (T, H, d) contiguous
    grad_out,  # (T, H, d) contiguous
    delta,  # (H, T) float32, row sums of out * grad_out, written
    q_weight,  # (d,) float32, or None: no norms
    q_bias,  # (d,) float32, with q_weight
    k_weight,  # (d,) float32, with q_weight
    folded,  # (T, H, d) contiguous, with q_weight: the queries as they meet the keys, written
    q_row,
    q_head,
    T,
    heads,
    eps,
    HEAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    head = tl.program_id(1)
    row = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    feature = tl.arange(0, HEAD)
    inside = row < T
    at = row[:, None] * (heads * HEAD) + head * HEAD + feature[None, :]
    g = tl.load(grad_out + at, mask=inside[:, None], other=0.0).to(tl.float32)
    o = tl.load(out + at, mask=inside[:, None], other=0.0).to(tl.float32)
    tl.store(delta + head.to(tl.int64) * T + row, tl.sum(o * g, 1), mask=inside)
    if q_weight is not None:
        own = q + row[:, None] * q_row + head * q_head + feature[None, :]
        tile = tl.load(own, mask=inside[:, None], other=0.0)
        folded_tile, _ = fold_norms(tile, q_weight, q_bias, k_weight, eps, HEAD)
        tl.store(folded + at, folded_tile.to(folded.dtype.element_ty), mask=inside[:, None])


@triton.jit
def query_finish_kernel(
    dq,  # (T, H, d) float32 contiguous: the sum over keys, less its scale
    q,  # (T, H, d), last dim contiguous
    grad_q,  # (T, H, d), heads contiguous, written
    q_weight,  # (d,) float32, or None: no norms
    q_bias,  # (d,) float32, with q_weight
    k_weight,  # (d,) float32, with q_weight
    sums,  # (programs, 3, d) float32, with q_weight: gradients of q_weight, q_bias, k_weight, written
    q_row,
    q_head,
    grad_q_row,
    T,
    heads,
    scale,
    eps,
    HEAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    head = tl.program_id(1)
    row = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    feature = tl.arange(0, HEAD)
    inside = row < T
    at = row[:, None] * (heads * HEAD) + head * HEAD + feature[None, :]
    acc = tl.load(dq + at, mask=inside[:, None], other=0.0) * scale
    if q_weight is not None:
        own = q + row[:, None] * q_row + head * q_head + feature[None, :]
        raw = tl.load(own, mask=inside[:, None], other=0.0)
        program = tl.program_id(0).to(tl.int64) * heads + head
        acc = query_norm_gradient(
            acc, raw, q_weight, q_bias, k_weight, sums + program * (3 * HEAD), eps, HEAD
        )
    at = row[:, None] * grad_q_row + head * HEAD + feature[None, :]
    tl.store(grad_q + at, acc.to(grad_q.dtype.element_ty), mask=inside[:, None])
