"""Triton kernels of normed attention: LayerNorm of q and k over the head dim, at no cost per score.

With kn = khat * kw + kb, khat = (k - mean) / spread, the term qn . kb is the same for all keys and drops out of the
softmax, and qn . (khat * kw) = folded . khat with folded = qn * kw. So one small kernel writes khat, a query tile is
transformed once, and the loops over scores are those of attention without norms: a factor per score and key, as
1 / spread applied there would be, cost a quarter of the forward pass on an H100. Backward, by u = sum_j dS_ij khat_j:
dL/dqn = u * kw, dL/dkw = sum_i qn_i * u_i, dL/dkb = 0, and the key's norm is undone once per key tile. Precision:
`folded` and khat are rounded as qn and kn would be.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from camae.kernels._compile_ahead import CompileCase
from camae.kernels._launch import launch

KEY_ROWS = 64


class Norms(NamedTuple):
    """LayerNorm of q and k inside the kernels: weights and bias (d,) float32 contiguous, and eps.

    The bias of k has no influence on the result (module docstring).
    """

    q_weight: torch.Tensor
    q_bias: torch.Tensor
    k_weight: torch.Tensor
    eps: float


@triton.jit
def normalized(x, eps, HEAD: tl.constexpr):
    """Rows (rows, HEAD) less their mean over their spread, and 1 / spread."""
    centered = x - (tl.sum(x, 1) / HEAD)[:, None]
    rstd = tl.rsqrt(tl.sum(centered * centered, 1) / HEAD + eps)
    return centered * rstd[:, None], rstd


@triton.jit
def fold_norms(q, q_weight, q_bias, k_weight, eps, HEAD: tl.constexpr):
    """(folded, qn), float32: the query tile that meets keys of norm 1, and the normed one."""
    feature = tl.arange(0, HEAD)
    unit, _ = normalized(q.to(tl.float32), eps, HEAD)
    qn = unit * tl.load(q_weight + feature)[None, :] + tl.load(q_bias + feature)[None, :]
    return qn * tl.load(k_weight + feature)[None, :], qn


@triton.jit
def key_norm_kernel(
    k,  # (S, H, d), last dim contiguous
    normed,  # (S, H, d) contiguous, written
    key_rstd,  # (H, S) float32, written
    k_row,
    k_head,
    heads,
    S,
    eps,
    HEAD: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    head = tl.program_id(1)
    row = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    feature = tl.arange(0, HEAD)
    at = k + row[:, None] * k_row + head * k_head + feature[None, :]
    inside = row < S
    unit, rstd = normalized(tl.load(at, mask=inside[:, None], other=0.0).to(tl.float32), eps, HEAD)
    own = normed + row[:, None] * (heads * HEAD) + head * HEAD + feature[None, :]
    tl.store(own, unit.to(normed.dtype.element_ty), mask=inside[:, None])
    tl.store(key_rstd + head.to(tl.int64) * S + row, rstd, mask=inside)


def normed_keys(k_SHd: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(k - mean) / sqrt(variance + eps) of every key, (S, H, d) in k's dtype, and that factor, (H, S) float32."""
    S, H, d = k_SHd.shape
    normed_SHd, rstd_HS = k_SHd.new_empty(S, H, d), k_SHd.new_empty(H, S, dtype=torch.float32)
    rows = 32 if k_SHd.device.type == "cpu" else KEY_ROWS
    if S:
        launch(
            key_norm_kernel,
            (triton.cdiv(S, rows), H),
            k_SHd,
            normed_SHd,
            rstd_HS,
            *k_SHd.stride()[:2],
            H,
            S,
            eps,
            HEAD=d,
            BLOCK_N=rows,
            num_warps=4,
        )
    return normed_SHd, rstd_HS


def key_norm_case(head: int, dtype: str) -> CompileCase:
    """`key_norm_kernel` on 16-bit keys."""
    types = {
        "k": f"*{dtype}",
        "normed": f"*{dtype}",
        "key_rstd": "*fp32",
        "k_row": "i32",
        "k_head": "i32",
        "heads": "i32",
        "S": "i32",
        "eps": "fp32",
    }
    constants: dict[str, object] = {"HEAD": head, "BLOCK_N": KEY_ROWS}
    name = f"key_norm d{head} {dtype}, normed"
    return CompileCase(
        "varlen_attention", name, key_norm_kernel, types, constants, 4, 1, ("k_row", "k_head"), False
    )
