"""residual_norm: residual sum, LayerScale, stochastic depth and LayerNorm of a transformer block, in one pass.

y = x + factor[sample] * gamma * update (residual, LayerScale of Touvron et al. 2021, stochastic depth of Huang et
al. 2016 by sample) and normed = LayerNorm(y), each part optional. Floor: x, update read, y, normed written once
(T*D values each); backward: grad_y, grad_normed, y, update read, grad_x, grad_update written once. Mean and
spread of a row are recomputed in the backward pass, so that nothing but y and update has to be saved.
"""

from __future__ import annotations

import torch

from camae.errors import CamaeError
from camae.kernels import _dispatch
from camae.kernels._autograd import Maybe
from camae.kernels._device import autocast_dtype
from camae.kernels.residual_norm.reference import residual_norm_reference
from camae.kernels.residual_norm.registration import residual_norm_op, stream_dtype


def backends(device: torch.device | str = "cpu") -> tuple[_dispatch.Backend, ...]:
    """The op's back-ends and whether each can run on `device`."""
    return _dispatch.backends_of("residual_norm", device)


def residual_norm(
    x_TD: torch.Tensor,
    update_TD: Maybe = None,
    gamma_D: Maybe = None,
    factor_B: Maybe = None,
    segment_T: Maybe = None,
    weight_D: Maybe = None,
    bias_D: Maybe = None,
    *,
    eps: float = 1e-6,
    backend: str | None = None,
) -> tuple[torch.Tensor, Maybe]:
    """(y, normed): y = x + factor[segment] * gamma * update, normed = LayerNorm(y) * weight + bias.

    x_TD, update_TD: (T, D) packed tokens in fp32, bf16 or fp16 (each its own); without an update y is x.
    gamma_D: (D,) LayerScale, or None. factor_B, segment_T: (B,) what stochastic depth leaves of every sample's
    update (0 or 1 / (1 - rate)) and the (T,) int64 sample of every row, or None.
    weight_D, bias_D: (D,) of the norm; without them normed is None. y follows torch's promotion; normed has the
    dtype autocast asks for, else y's.

    Raises CamaeError for shapes that do not fit, MissingBackendError for a back-end that cannot run here.
    """
    _check(x_TD, update_TD, factor_B, segment_T, weight_D, bias_D)
    name = _dispatch.choose("residual_norm", backend, x_TD.device)
    if name == "reference":
        return residual_norm_reference(x_TD, update_TD, gamma_D, factor_B, segment_T, weight_D, bias_D, eps)
    working = autocast_dtype(x_TD.device) or stream_dtype(x_TD, update_TD, gamma_D)
    y_TD, normed_TD = residual_norm_op(
        x_TD, update_TD, gamma_D, factor_B, segment_T, weight_D, bias_D, eps, working
    )
    return x_TD if update_TD is None else y_TD, None if weight_D is None else normed_TD


def _check(
    x_TD: torch.Tensor,
    update_TD: Maybe,
    factor_B: Maybe,
    segment_T: Maybe,
    weight_D: Maybe,
    bias_D: Maybe,
) -> None:
    if x_TD.ndim != 2 or (update_TD is not None and update_TD.shape != x_TD.shape):
        other = "" if update_TD is None else f" and an update {tuple(update_TD.shape)}"
        raise CamaeError(f"residual_norm needs tokens (T, D) of equal shapes, got {tuple(x_TD.shape)}{other}")
    if (factor_B is None) != (segment_T is None) or (weight_D is None) != (bias_D is None):
        raise CamaeError("residual_norm takes factor and segment together, and weight and bias together")
