"""Plain-torch form of `gelu_split`, and the kernels' results by formula."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from camae.kernels._autograd import Maybe
from camae.kernels._device import accumulation_dtype


def gelu_split_reference(
    fused_TF: torch.Tensor, bias_h: Maybe, widths: Sequence[int]
) -> tuple[torch.Tensor, ...]:
    """The activation and the other columns in plain torch."""
    first, *rest = fused_TF.split(list(widths), dim=1)
    return F.gelu(first if bias_h is None else first + bias_h), *rest


def gelu_columns_formula(fused_TF: torch.Tensor, bias_h: Maybe, hidden: int) -> torch.Tensor:
    """GELU(fused[:, :hidden] + bias), (T, hidden), computed in fp32 (fp64 for fp64)."""
    x = fused_TF[:, :hidden].to(accumulation_dtype(fused_TF))
    return F.gelu(x if bias_h is None else x + bias_h).to(fused_TF.dtype).contiguous()


def gelu_columns_backward_formula(
    grad_act_Th: torch.Tensor,
    fused_TF: torch.Tensor,
    bias_h: Maybe,
    grad_fused_TF: torch.Tensor,
    act_Th: Maybe,
) -> torch.Tensor:
    """Write the first columns of the fused gradient, and the activation where wanted; the bias's gradient."""
    hidden, working = grad_act_Th.shape[1], accumulation_dtype(fused_TF)
    x = fused_TF[:, :hidden].to(working)
    x = x if bias_h is None else x + bias_h
    cdf = 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))
    if act_Th is not None:
        act_Th.copy_(x * cdf)
    slope = cdf + x * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    grad = grad_act_Th.to(working) * slope
    grad_fused_TF[:, :hidden] = grad
    return grad.sum(0)
