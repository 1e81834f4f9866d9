"""Triton kernels of normed attention: LayerNorm of q and k over the head dim, for one factor per score.

With kn = khat * kw + kb, khat = (k - mean) * rstd, the term qn . kb is the same for all keys and drops out of the
softmax, and (qn * kw) . (k - mean) = folded . k with folded = qn * kw less its own mean. So scores are
rstd_j * (folded_i . k_j): the key tiles stay as stored, only a query tile is transformed, once. Backward likewise: by
u = sum_j dS_ij rstd_j k_j less its mean, dL/dqn = u * kw and dL/dkw = sum_i qn_i * u_i; dL/dkb = 0. Precision:
`folded` is rounded as qn would be; a mean of k far above its spread would cost digits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from camae.kernels._compile_ahead import CompileCase
from camae.kernels._launch import launch

RSTD_ROWS = 64


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
    """(folded, qn), float32: the query tile that meets keys as they are stored, and the normed one."""
    feature = tl.arange(0, HEAD)
    unit, _ = normalized(q.to(tl.float32), eps, HEAD)
    qn = unit * tl.load(q_weight + feature)[None, :] + tl.load(q_bias + feature)[None, :]
    folded = qn * tl.load(k_weight + feature)[None, :]
    return folded - (tl.sum(folded, 1) / HEAD)[:, None], qn


@triton.jit
def key_rstd_kernel(
    k,  # (S, H, d), last dim contiguous
    key_rstd,  # (H, S) float32, written
    k_row,
    k_head,
    S,
    eps,
    HEAD: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    head = tl.program_id(1)
    row = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    at = k + row[:, None] * k_row + head * k_head + tl.arange(0, HEAD)[None, :]
    tile = tl.load(at, mask=(row < S)[:, None], other=0.0).to(tl.float32)
    _, rstd = normalized(tile, eps, HEAD)
    tl.store(key_rstd + head.to(tl.int64) * S + row, rstd, mask=row < S)


def key_rstd(k_SHd: torch.Tensor, eps: float) -> torch.Tensor:
    """1 / sqrt(variance + eps) of every key, (H, S) float32."""
    S, H, d = k_SHd.shape
    out_HS = k_SHd.new_empty(H, S, dtype=torch.float32)
    rows = 32 if k_SHd.device.type == "cpu" else RSTD_ROWS
    if S:
        launch(
            key_rstd_kernel,
            (triton.cdiv(S, rows), H),
            k_SHd,
            out_HS,
            *k_SHd.stride()[:2],
            S,
            eps,
            HEAD=d,
            BLOCK_N=rows,
            num_warps=4,
        )
    return out_HS


def rstd_case(head: int, dtype: str) -> CompileCase:
    """`key_rstd_kernel` on 16-bit keys."""
    types = {
        "k": f"*{dtype}",
        "key_rstd": "*fp32",
        "k_row": "i32",
        "k_head": "i32",
        "S": "i32",
        "eps": "fp32",
    }
    constants: dict[str, object] = {"HEAD": head, "BLOCK_N": RSTD_ROWS}
    name = f"key_rstd d{head} {dtype}, normed"
    return CompileCase(
        "varlen_attention", name, key_rstd_kernel, types, constants, 4, 1, ("k_row", "k_head"), False
    )
