"""Linear layers for inference, with weights packed once."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from camae.errors import CamaeError, MissingBackendError

# float32: on a CPU oneDNN with packed weights, measured 1.4 to 1.5 times torch's default (MKL) product on an AMD EPYC.
# bfloat16: inputs and weights rounded to bfloat16, sums in float32.
KINDS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_TYPICAL_ROWS = 2048  # what oneDNN lays a packed weight out for; it runs with any number of rows


class InferenceLinear:
    """Linear layer y = x W^T + b of a fixed weight, with an optional exact GELU or residual sum. Not differentiable.

    weight_FD: (F, D); bias_F: (F,) or None. kind: one of `KINDS`. packed: in oneDNN's layout on a CPU, which
    torch.compile cannot take; without it a plain product, for the compiler to fuse.
    Returns float32 for float32 and for sums, else bfloat16.
    Raises CamaeError for another kind, MissingBackendError where torch lacks oneDNN.
    """

    def __init__(
        self, weight_FD: torch.Tensor, bias_F: torch.Tensor | None, kind: str, *, packed: bool = True
    ):
        if kind not in KINDS:
            raise CamaeError(f"linear layers of kind {kind!r}: choose from {', '.join(KINDS)}")
        self.kind, dtype = kind, KINDS[kind]
        self.onednn = weight_FD.device.type == "cpu" and packed
        weight_FD = weight_FD.detach().to(dtype)
        self.bias_F = None if bias_F is None else bias_F.detach().to(dtype)
        self.weight_FD = weight_FD
        if self.onednn:
            if not torch.backends.mkldnn.is_available():
                raise MissingBackendError("this torch has no oneDNN, which packed CPU layers need")
            self.weight_FD = torch.ops.mkldnn._reorder_linear_weight(weight_FD.contiguous(), _TYPICAL_ROWS)

    def __call__(
        self, x_TD: torch.Tensor, *, gelu: bool = False, add_TF: torch.Tensor | None = None
    ) -> torch.Tensor:
        """gelu(x W^T + b) or add + x W^T + b, (T, F), of x (T, D)."""
        if not self.onednn:
            return _finish(F.linear(x_TD.to(self.weight_FD.dtype), self.weight_FD, self.bias_F), gelu, add_TF)
        onednn = torch.ops.mkldnn._linear_pointwise
        if self.kind == "float32" and add_TF is not None:
            return onednn.binary(x_TD, add_TF, self.weight_FD, self.bias_F, "add")
        x_TD = x_TD.float() if self.kind == "float32" else x_TD.bfloat16()
        attribute, form = ("gelu", "none") if gelu else ("none", "")
        return _finish(onednn(x_TD, self.weight_FD, self.bias_F, attribute, [], form), False, add_TF)


def _finish(y_TF: torch.Tensor, gelu: bool, add_TF: torch.Tensor | None) -> torch.Tensor:
    y_TF = F.gelu(y_TF) if gelu else y_TF
    return y_TF if add_TF is None else add_TF + y_TF
