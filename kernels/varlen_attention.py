"""varlen_attention: attention within the sequences of a packed batch, q and k lengths free."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F

from camae.errors import CamaeError
from camae.kernels.backends import Backend, choose, reference_backend

Norm = tuple[torch.Tensor, torch.Tensor]


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
    if len(groups) == 1:
        (Tq, Tk) = pairs[0]
        if Tq and Tk:
            return _dense(q_THd, k_SHd, v_SHd, len(pairs), scale)
    starts_q, starts_k = (list(accumulate(x, initial=0)) for x in (lengths_q, lengths_k))
    outputs, rows = [], []
    for (Tq, Tk), members in groups.items():
        if Tq == 0:
            continue
        rows_q = _rows([starts_q[b] for b in members], Tq, q_THd.device)
        rows.append(rows_q)
        if Tk == 0:  # nothing to look at: zeros, by definition
            outputs.append(torch.zeros_like(q_THd[rows_q]))
            continue
        rows_k = _rows([starts_k[b] for b in members], Tk, q_THd.device)
        outputs.append(_dense(q_THd[rows_q], k_SHd[rows_k], v_SHd[rows_k], len(members), scale))
    if not outputs:
        return torch.zeros_like(q_THd)
    return torch.cat(outputs)[torch.cat(rows).argsort()]


def lengths_of(cu_seqlens: torch.Tensor) -> tuple[int, ...]:
    """Sequence lengths on the host (reads them back from a device)."""
    return tuple(cu_seqlens.diff().tolist())


def backends(device: torch.device | str = "cpu") -> tuple[Backend, ...]:
    """The op's back-ends on `device`, the default first."""
    return (reference_backend(),)


def varlen_attention(
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    *,
    backend: str | None = None,
    scale: float | None = None,
    lengths_q: Sequence[int] | None = None,
    lengths_k: Sequence[int] | None = None,
    q_norm: Norm | None = None,
    k_norm: Norm | None = None,
    norm_eps: float = 1e-6,
    deterministic: bool = False,
) -> torch.Tensor:
    """softmax(q k^T * scale) v within every sequence, (T, H, d).

    q_THd: (T, H, d), k_SHd and v_SHd: (S, H, d), packed; cu_q, cu_k: (B + 1,) int32 where sequences begin.
    scale: None: 1 / sqrt(d).
    lengths_q, lengths_k: the lengths on the host, so that none is read back from a device.
    q_norm, k_norm: (weight_d, bias_d) of a LayerNorm over the head dim, applied first.
    deterministic: ask for a backward pass with a fixed order of additions.

    A sequence without keys gives zeros. Raises CamaeError for shapes that do not fit, MissingBackendError for
    a back-end that cannot run here.
    """
    _check(q_THd, k_SHd, v_SHd, cu_q, cu_k)
    choose("varlen_attention", backend, backends(q_THd.device), "reference")
    if lengths_q is None:
        lengths_q = lengths_of(cu_q)
    if lengths_k is None:
        lengths_k = lengths_q if cu_k is cu_q else lengths_of(cu_k)
    d = q_THd.shape[-1]
    if q_norm is not None:
        q_THd = F.layer_norm(q_THd, (d,), *q_norm, eps=norm_eps)
    if k_norm is not None:
        k_SHd = F.layer_norm(k_SHd, (d,), *k_norm, eps=norm_eps)
    return varlen_attention_reference(q_THd, k_SHd, v_SHd, lengths_q, lengths_k, scale)


def _check(
    q_THd: torch.Tensor, k_SHd: torch.Tensor, v_SHd: torch.Tensor, cu_q: torch.Tensor, cu_k: torch.Tensor
) -> None:
    if q_THd.ndim != 3 or k_SHd.shape != v_SHd.shape or q_THd.shape[1:] != k_SHd.shape[1:]:
        raise CamaeError(
            f"attention needs q (T, H, d) and k, v (S, H, d), got {tuple(q_THd.shape)}, "
            f"{tuple(k_SHd.shape)}, {tuple(v_SHd.shape)}"
        )
    if cu_q.ndim != 1 or cu_q.shape != cu_k.shape or len(cu_q) < 1:
        raise CamaeError(
            f"cu_q and cu_k must both be (B + 1,), got {tuple(cu_q.shape)} and {tuple(cu_k.shape)}"
        )
