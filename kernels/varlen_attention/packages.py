"""Attention kernels of other packages: torch's FlashAttention-2, flash-attn 2, 3 and 4, cuDNN. CUDA only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch

from camae.errors import CamaeError
from camae.kernels._dispatch import PACKAGE_HEAD_DIMS
from camae.kernels.varlen_attention.reference import varlen_attention_reference


def _check_head_dim(name: str, d: int) -> None:
    if d not in PACKAGE_HEAD_DIMS:
        raise CamaeError(
            f"{name} takes head dims that are multiples of 8 up to {PACKAGE_HEAD_DIMS[-1]}, not {d}; "
            "use backend='reference'"
        )


def package_attention(
    name: str,
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    maxima: tuple[int, int],
    scale: float,
    deterministic: bool,
) -> torch.Tensor:
    """(T, H, d) by the package's kernel, with the arguments that every version of it has.

    name: "torch_varlen", "flash_attn", "flash_attn_3" or "flash_attn_4". maxima: the longest sequences of queries and
    of keys. Raises CamaeError for a head dim that the packages lack.
    """
    _check_head_dim(name, q_THd.shape[-1])
    if q_THd.numel() == 0 or maxima[1] == 0:
        return torch.zeros_like(q_THd)
    if name == "torch_varlen":
        return _torch_varlen(q_THd, k_SHd, v_SHd, cu_q, cu_k, maxima, scale, deterministic)
    if name == "flash_attn":
        from flash_attn import flash_attn_varlen_func
    elif name == "flash_attn_3":
        from flash_attn_interface import flash_attn_varlen_func
    else:
        from flash_attn.cute import flash_attn_varlen_func
    result = flash_attn_varlen_func(
        q_THd,
        k_SHd,
        v_SHd,
        cu_seqlens_q=cu_q,
        cu_seqlens_k=cu_k,
        max_seqlen_q=maxima[0],
        max_seqlen_k=maxima[1],
        softmax_scale=scale,
        deterministic=deterministic,
    )
    return result[0] if isinstance(result, tuple) else result


def cudnn_attention(
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    lengths_q: Sequence[int],
    lengths_k: Sequence[int],
    scale: float | None,
) -> torch.Tensor:
    """(T, H, d) by cuDNN: SDPA over groups of equal lengths, with no other kernel allowed.

    Raises CamaeError for what cuDNN does not take: sequences of one token, and head dims that are no multiple of 8.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    _check_head_dim("cudnn", q_THd.shape[-1])
    if 1 in lengths_q or 1 in lengths_k:
        raise CamaeError(
            "cuDNN's attention takes no sequence of one token; use backend='triton' or backend='reference'"
        )
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return varlen_attention_reference(q_THd, k_SHd, v_SHd, lengths_q, lengths_k, scale)


def _torch_varlen(
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    maxima: tuple[int, int],
    scale: float,
    deterministic: bool,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    if deterministic and q_THd.requires_grad and not torch.are_deterministic_algorithms_enabled():
        raise CamaeError(
            "torch_varlen is deterministic only under torch.use_deterministic_algorithms(True); set it or use "
            "backend='triton'"
        )
    # Its `scale` argument moves between versions: put the factor into q.
    factor = scale * math.sqrt(q_THd.shape[-1])
    q_THd = q_THd if math.isclose(factor, 1) else q_THd * factor
    return cast(torch.Tensor, varlen_attn(q_THd, k_SHd, v_SHd, cu_q, cu_k, *maxima))
