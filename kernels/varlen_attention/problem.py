"""Inputs of the attention launchers and the buffers that gradients are written to."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch

from camae.kernels.varlen_attention.head_norm_triton import Norms
from camae.kernels.varlen_attention.tile_table import AttentionConfig, config_for


class Problem(NamedTuple):
    """Attention over a packed batch: q (T, H, d), k and v (S, H, d); with norms raw queries and normed keys.

    rstd_HS: 1 / spread of the raw keys, with norms; the gradient needs it. tiles: None: those of the device.
    atomic: the backward pass with 5 products.
    """

    q_THd: torch.Tensor
    k_SHd: torch.Tensor
    v_SHd: torch.Tensor
    cu_q: torch.Tensor
    cu_k: torch.Tensor
    max_q: int
    max_k: int
    scale: float
    norms: Norms | None = None
    rstd_HS: torch.Tensor | None = None
    tiles: AttentionConfig | None = None
    atomic: bool = False

    @property
    def config(self) -> AttentionConfig:
        """`tiles`, or the frozen ones for the device, the head dim, and whether there are norms."""
        if self.tiles is not None:
            return self.tiles
        return config_for(self.q_THd.device, self.q_THd.shape[2], self.q_THd.dtype, self.norms is not None)

    @property
    def vectors(self) -> tuple[torch.Tensor | None, ...]:
        """Weight and bias of q's norm, weight of k's."""
        norms = self.norms
        return (None, None, None) if norms is None else (norms.q_weight, norms.q_bias, norms.k_weight)

    @property
    def eps(self) -> float:
        """Of the norms."""
        return 0.0 if self.norms is None else self.norms.eps


class Buffers(NamedTuple):
    """Gradients of q (T, H, d), k and v (S, H, d) to be written, each row contiguous over heads."""

    grad_q: torch.Tensor
    grad_k: torch.Tensor
    grad_v: torch.Tensor


def separate_buffers(q_THd: torch.Tensor, k_SHd: torch.Tensor, v_SHd: torch.Tensor) -> Buffers:
    """Three contiguous gradients."""
    return Buffers(*(x.new_empty(x.shape) for x in (q_THd, k_SHd, v_SHd)))


def shared_buffers(q_THd: torch.Tensor, k_SHd: torch.Tensor, v_SHd: torch.Tensor) -> Buffers:
    """Gradients laid out as q, k and v are where those are columns of one (T, F) product, else three of their own.

    The gradient of the product is then complete with its other columns, and no copy follows.
    """
    tensors = (q_THd, k_SHd, v_SHd)
    (T, H, d), row = q_THd.shape, q_THd.stride(0)
    whole = q_THd.untyped_storage()
    columns = [x.storage_offset() for x in tensors]
    is_product = (
        T * row * q_THd.element_size() == whole.nbytes()
        and row >= 3 * H * d
        and all(x.untyped_storage().data_ptr() == whole.data_ptr() for x in tensors)
        and all(x.shape == q_THd.shape and x.stride() == (row, d, 1) for x in tensors)
        and all(b - a >= H * d for a, b in pairwise(sorted(columns)))
        and max(columns) + H * d <= row
    )
    if not is_product:
        return separate_buffers(*tensors)
    grad_TF = q_THd.new_empty(T, row)
    return Buffers(*(grad_TF[:, c : c + H * d].unflatten(1, (H, d)) for c in columns))
