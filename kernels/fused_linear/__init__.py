"""fused_linear: linear layers together with the memory-bound op before them, which may be recomputed.

`norm_linear` is (residual +) LayerNorm + product, `gelu_linear` bias + GELU + split + product. With
`save_activations=False` the product's input (a normed or activated copy of the tokens) is not saved for the backward
pass but recomputed from what is saved anyway: the token stream, and the fused projection. No product and no attention
is ever repeated: selective recomputation in the sense of Korthikanti et al. 2022. The gradients are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from camae.kernels import _dispatch
from camae.kernels._autograd import Maybe
from camae.kernels._device import autocast_dtype
from camae.kernels.fused_linear.registration import GeluLinear, NormLinear
from camae.kernels.gelu_split import check_widths
from camae.kernels.gelu_split.reference import gelu_split_reference
from camae.kernels.residual_norm.reference import residual_norm_reference


def backends(device: torch.device | str = "cpu") -> tuple[_dispatch.Backend, ...]:
    """The back-ends of the memory-bound ops and whether each can run on `device`."""
    return _dispatch.backends_of("residual_norm", device)


def elementwise_backend(requested: str | None, device: torch.device) -> str:
    """The back-end that residual_norm, gelu_split and the functions here take on a device."""
    return _dispatch.choose("residual_norm", requested, device)


def _autocast(x: torch.Tensor) -> torch.Tensor:
    """In the dtype autocast asks for, which an autograd function has to see to itself."""
    low = autocast_dtype(x.device)
    return x if low is None else x.to(low)


def norm_linear(
    x_TD: torch.Tensor,
    norm_weight_D: torch.Tensor,
    norm_bias_D: torch.Tensor,
    eps: float,
    weight_FD: torch.Tensor,
    bias_F: Maybe,
    *,
    update_TD: Maybe = None,
    gamma_D: Maybe = None,
    factor_B: Maybe = None,
    segment_T: Maybe = None,
    save_activations: bool = True,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, LayerNorm(y) weight^T + bias), y = x + factor[segment] * gamma * update: shapes as in `residual_norm`.

    save_activations: False: the normed tokens are recomputed in the backward pass.
    backend: of residual_norm, "triton" or "reference". Raises MissingBackendError for one that cannot run here.
    """
    name = elementwise_backend(backend, x_TD.device)
    residual = (x_TD, update_TD, gamma_D, factor_B, segment_T)
    if name == "reference" and save_activations:
        y_TD, normed_TD = residual_norm_reference(*residual, norm_weight_D, norm_bias_D, eps)
        assert normed_TD is not None
        return y_TD, F.linear(normed_TD, weight_FD, bias_F)
    weight_FD, bias_F = _autocast(weight_FD), None if bias_F is None else _autocast(bias_F)
    options = (save_activations, name == "triton")
    out = NormLinear.apply(*residual, norm_weight_D, norm_bias_D, eps, weight_FD, bias_F, *options)
    return (x_TD, out) if update_TD is None else out


def gelu_linear(
    fused_TF: torch.Tensor,
    bias_h: Maybe,
    widths: Sequence[int],
    weight_Dh: torch.Tensor,
    bias_D: Maybe,
    *,
    save_activations: bool = True,
    backend: str | None = None,
) -> tuple[torch.Tensor, ...]:
    """(GELU(first columns + bias_h) weight^T + bias, the other columns ...): shapes as in `gelu_split`.

    save_activations: False: the activation is recomputed in the backward pass.
    backend: of gelu_split, "triton" or "reference". Raises MissingBackendError for one that cannot run here.
    """
    check_widths(fused_TF, bias_h, widths)
    name = elementwise_backend(backend, fused_TF.device)
    if name == "reference" and save_activations:
        act_Th, *rest = gelu_split_reference(fused_TF, bias_h, widths)
        return F.linear(act_Th, weight_Dh, bias_D), *rest
    weight_Dh, bias_D = _autocast(weight_Dh), None if bias_D is None else _autocast(bias_D)
    options = (save_activations, name == "triton")
    return GeluLinear.apply(fused_TF, bias_h, tuple(widths), weight_Dh, bias_D, *options)
