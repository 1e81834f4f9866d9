"""Plain-torch form of the second half of a transformer block."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from camae.kernels._autograd import Maybe


def block_tail_reference(
    x_TD: torch.Tensor,
    attended_TD: torch.Tensor,
    proj: tuple[torch.Tensor, Maybe],
    parallel: bool,
    norm: tuple[torch.Tensor, torch.Tensor],
    eps: float,
    layers: tuple[tuple[torch.Tensor, Maybe], tuple[torch.Tensor, Maybe]],
) -> torch.Tensor:
    """`block_tail_op` in plain torch, any dtype, with weights as they are."""
    y_TD = x_TD + F.linear(attended_TD, *proj)
    normed_TD = F.layer_norm(x_TD if parallel else y_TD, x_TD.shape[-1:], *norm, eps)
    return y_TD + F.linear(F.gelu(F.linear(normed_TD, *layers[0])), *layers[1])
