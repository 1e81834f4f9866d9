"""gelu_split: bias + GELU + split of a fused projection, with one gradient buffer for all of its columns.

The first columns of the (T, F) product are an MLP's hidden units: act = GELU(x + bias), exact form. The others (q,
k, v of a parallel block) leave as views. Backward, the GELU's part is computed and all parts written into one
(T, F) gradient, so that no concatenation follows; the bias's gradient falls out of the same pass. Floor: forward
reads and writes T*hidden values; backward reads twice, writes once (one more where the activation is recomputed),
and copies the other columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from camae.errors import CamaeError
from camae.kernels import _dispatch
from camae.kernels._autograd import Maybe
from camae.kernels.gelu_split.reference import gelu_split_reference
from camae.kernels.gelu_split.registration import GeluSplit


def backends(device: torch.device | str = "cpu") -> tuple[_dispatch.Backend, ...]:
    """The op's back-ends and whether each can run on `device`."""
    return _dispatch.backends_of("gelu_split", device)


def gelu_split(
    fused_TF: torch.Tensor,
    bias_h: Maybe,
    widths: Sequence[int],
    *,
    backend: str | None = None,
) -> tuple[torch.Tensor, ...]:
    """(GELU(first columns + bias), the other columns ...).

    fused_TF: (T, F), rows contiguous, fp32, bf16 or fp16. bias_h: (widths[0],) or None. widths: columns of each
    part, the activation's first; they add up to F. The other parts are views of `fused_TF`.

    Raises CamaeError for widths that do not fit, MissingBackendError for a back-end that cannot run here.
    """
    check_widths(fused_TF, bias_h, widths)
    name = _dispatch.choose("gelu_split", backend, fused_TF.device)
    if name == "reference":
        return gelu_split_reference(fused_TF, bias_h, widths)
    return GeluSplit.apply(fused_TF, bias_h, tuple(widths))


def check_widths(fused_TF: torch.Tensor, bias_h: Maybe, widths: Sequence[int]) -> None:
    """Raise CamaeError where columns and bias do not fit."""
    if fused_TF.ndim != 2 or sum(widths) != fused_TF.shape[1] or fused_TF.stride(1) != 1:
        raise CamaeError(
            f"gelu_split: columns {tuple(widths)} do not make up {tuple(fused_TF.shape)} by rows"
        )
    if bias_h is not None and bias_h.shape != (widths[0],):
        raise CamaeError(f"gelu_split: the bias has shape {tuple(bias_h.shape)}, not ({widths[0]},)")
