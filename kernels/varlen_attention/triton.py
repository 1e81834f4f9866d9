"""Launchers of `varlen_attention` and `normed_attention` on Triton, imported only when the back-end is used.

The kernels: triton_forward.py, triton_backward.py; the norms of q and k, where `q_weight` is given:
head_norm_triton.py; k are then normed keys. Their tiles: tile_table.py.
"""

from __future__ import annotations

from typing import Any

import torch
import triton

from camae.errors import CamaeError
from camae.kernels._compile_ahead import CompileCase
from camae.kernels._launch import launch
from camae.kernels.varlen_attention.attention_cases import attention_cases
from camae.kernels.varlen_attention.head_norm_triton import Norms, normed_keys
from camae.kernels.varlen_attention.problem import Buffers, Problem, separate_buffers, shared_buffers
from camae.kernels.varlen_attention.tile_table import SHORT, Tile
from camae.kernels.varlen_attention.triton_atomic import (
    QUERY_ROWS,
    query_finish_kernel,
    query_prepare_kernel,
)
from camae.kernels.varlen_attention.triton_backward import key_gradient_kernel, query_gradient_kernel
from camae.kernels.varlen_attention.triton_forward import forward_kernel

LOG2_E = 1.4426950408889634


def _strides(*tensors: torch.Tensor) -> tuple[int, ...]:
    return tuple(stride for x in tensors for stride in x.stride()[:2])


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
    """Fill the gradients of q, k and v; return (3, d) of the norms' vectors. Deterministic unless `a.atomic`."""
    grad_THd, delta_HT = grad_THd.contiguous(), torch.empty_like(lse_HT)
    if a.atomic:
        folded_THd = _prepare_queries(a, grad_THd, out_THd, delta_HT)
        dq_THd = torch.zeros(a.q_THd.shape, dtype=torch.float32, device=a.q_THd.device)
        _key_gradient(a, grad_THd, folded_THd, lse_HT, delta_HT, buffers.grad_k, buffers.grad_v, dq_THd)
        sums = _finish_queries(a, dq_THd, buffers.grad_q)
        return None if sums is None else sums.sum(0)
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
    dq_THd: torch.Tensor | None = None,
) -> None:
    """Fill the gradients of k and v; add that of the queries, less its scale, to `dq_THd` (T, H, d) float32."""
    (S, H, d), B = a.k_SHd.shape, len(a.cu_q) - 1
    tile = a.config.keys if dq_THd is None else a.config.atomic
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
            dq_THd,
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


def _row_grid(a: Problem) -> tuple[tuple[int, int], dict[str, int]]:
    """Grid and options of a kernel over the rows of the queries."""
    (T, H, d) = a.q_THd.shape
    return (triton.cdiv(T, QUERY_ROWS), H), {"HEAD": d, "BLOCK_M": QUERY_ROWS, "num_warps": 4}


def _prepare_queries(
    a: Problem, grad_THd: torch.Tensor, out_THd: torch.Tensor, delta_HT: torch.Tensor
) -> torch.Tensor:
    """The queries that meet the keys (q itself without norms); fills `delta_HT` as `_query_gradient` does."""
    T, H, _ = a.q_THd.shape
    folded_THd = None if a.norms is None else a.q_THd.new_empty(a.q_THd.shape)
    grid, options = _row_grid(a)
    strides = _strides(a.q_THd)
    launch(
        query_prepare_kernel,
        grid,
        a.q_THd,
        out_THd,
        grad_THd,
        delta_HT,
        *a.vectors,
        folded_THd,
        *strides,
        T,
        H,
        a.eps,
        **options,
    )
    return a.q_THd if folded_THd is None else folded_THd


def _finish_queries(a: Problem, dq_THd: torch.Tensor, grad_q: torch.Tensor) -> torch.Tensor | None:
    """Round the sum over keys to the gradient of q; sums of the norms' gradients by program."""
    (T, H, d), (grid, options) = a.q_THd.shape, _row_grid(a)
    sums = None if a.norms is None else dq_THd.new_empty(grid[0] * H, 3, d)
    launch(
        query_finish_kernel,
        grid,
        dq_THd,
        a.q_THd,
        grad_q,
        *a.vectors,
        sums,
        *_strides(a.q_THd),
        grad_q.stride(0),
        T,
        H,
        a.scale,
        a.eps,
        **options,
    )
    return sums


def attention(
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    atomic: bool,
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
    atomic: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launch both backward kernels without norms; three gradients of their own."""
    problem = Problem(q_THd, k_SHd, v_SHd, cu_q, cu_k, max_q, max_k, scale, atomic=atomic)
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
    atomic: bool,
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
    atomic: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    # The normed keys again: one pass over k, in place of saving as much as k for every layer.
    normed_SHd, rstd_HS = normed_keys(k_SHd, eps)
    norms = _norms(q_weight_d, q_bias_d, k_weight_d, eps)
    problem = Problem(
        q_THd, normed_SHd, v_SHd, cu_q, cu_k, max_q, max_k, scale, norms, rstd_HS, atomic=atomic
    )
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
    atomic: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Launch both backward kernels with norms; three gradients of their own."""
    buffers = separate_buffers(q_THd, k_SHd, v_SHd)
    rest: tuple[Any, ...] = (out_THd, lse_HT, cu_q, cu_k, max_q, max_k, scale, eps, atomic)
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
    return attention_cases(arch)
