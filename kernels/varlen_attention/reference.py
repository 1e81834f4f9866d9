"""Plain-torch forms of `varlen_attention`: SDPA by groups of equal lengths, and the kernels' results by formula."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F

LOG2_E = math.log2(math.e)


def _dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, B: int, scale: float | None) -> torch.Tensor:
    """SDPA over B sequences of equal lengths, (B*Tq, H, d) -> (B*Tq, H, d)."""
    q_BHTd, k_BHSd, v_BHSd = (x.unflatten(0, (B, -1)).transpose(1, 2) for x in (q, k, v))
    out_BHTd = F.scaled_dot_product_attention(q_BHTd, k_BHSd, v_BHSd, scale=scale)
    return out_BHTd.transpose(1, 2).flatten(0, 1)


def _rows(starts: list[int], length: int, device: torch.device) -> torch.Tensor:
    """Row numbers of sequences that begin at `starts`, each `length` long."""
    begin = torch.tensor(starts, dtype=torch.int64)[:, None]
    return (begin + torch.arange(length)).flatten().to(device)


def varlen_attention_reference(
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    lengths_q: Sequence[int],
    lengths_k: Sequence[int],
    scale: float | None = None,
) -> torch.Tensor:
    """Plain SDPA: equal lengths by a reshape, ragged ones in groups of equal (q, k) lengths."""
    pairs = list(zip(lengths_q, lengths_k, strict=True))
    groups: dict[tuple[int, int], list[int]] = {}
    for b, pair in enumerate(pairs):
        groups.setdefault(pair, []).append(b)
    if len(groups) == 1 and all(pairs[0]):
        return _dense(q_THd, k_SHd, v_SHd, len(pairs), scale)
    starts_q, starts_k = (list(accumulate(x, initial=0)) for x in (lengths_q, lengths_k))
    outputs, rows = [], []
    for (Tq, Tk), members in groups.items():
        if Tq == 0:
            continue
        rows_q = _rows([starts_q[b] for b in members], Tq, q_THd.device)
        rows.append(rows_q)
        if Tk == 0:  # nothing to look at: zeros, by definition, and still part of the graph
            outputs.append(q_THd[rows_q] * 0)
            continue
        rows_k = _rows([starts_k[b] for b in members], Tk, q_THd.device)
        outputs.append(_dense(q_THd[rows_q], k_SHd[rows_k], v_SHd[rows_k], len(members), scale))
    if not outputs:
        return q_THd.clone()
    return torch.cat(outputs)[torch.cat(rows).argsort()]


def attention_formulas(
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    scale: float,
    grad_THd: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """Attention or its gradient by formula, sequence by sequence: (out, lse), or (dq, dk, dv) for a gradient."""
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
