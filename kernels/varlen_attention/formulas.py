"""What the attention kernels return, by formula: the CPU form of the ops, and what the kernels are compared with."""

from __future__ import annotations

import math

import torch

LOG2_E = math.log2(math.e)


def attention_formulas(
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    scale: float,
    grad_THd: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """What the kernels return, by formula and sequence by sequence: (out, lse), or (dq, dk, dv) for a gradient."""
    out, lse = torch.zeros_like(q_THd), q_THd.new_full(q_THd.shape[1::-1], -math.inf)
    grads = [torch.zeros_like(x) for x in (q_THd, k_SHd, v_SHd)]
    q_bounds, k_bounds = cu_q.tolist(), cu_k.tolist()
    for b in range(len(q_bounds) - 1):
        rows, keys = slice(*q_bounds[b : b + 2]), slice(*k_bounds[b : b + 2])
        if rows.start == rows.stop or keys.start == keys.stop:
            continue
        q, k, v = q_THd[rows], k_SHd[keys], v_SHd[keys]
        scores_HTS = torch.einsum("thd,shd->hts", q, k) * scale
        p_HTS = scores_HTS.softmax(-1)
        out[rows] = torch.einsum("hts,shd->thd", p_HTS, v)
        lse[:, rows] = scores_HTS.logsumexp(-1) * LOG2_E
        if grad_THd is not None:
            g = grad_THd[rows]
            slope_HTS = torch.einsum("thd,shd->hts", g, v)
            ds_HTS = p_HTS * (slope_HTS - (p_HTS * slope_HTS).sum(-1, keepdim=True)) * scale
            grads[0][rows] = torch.einsum("hts,shd->thd", ds_HTS, k)
            grads[1][keys] = torch.einsum("hts,thd->shd", ds_HTS, q)
            grads[2][keys] = torch.einsum("hts,thd->shd", p_HTS, g)
    return (out, lse) if grad_THd is None else tuple(grads)


def sum_dtype(x: torch.Tensor) -> torch.dtype:
    """What sums over x are kept in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
