"""Linear layers for inference, with weights packed once."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from camae.errors import CamaeError, MissingBackendError

# float32: on a CPU oneDNN with packed weights, measured 1.4 to 1.5 times torch's default (MKL) product on an AMD EPYC.
# bfloat16: inputs and weights rounded to bfloat16, sums in float32.
# fp8: e4m3 with a scale for every row of the input (by its largest value, at each call) and every output of the
#   weight, sums in float32. CUDA: `torch._scaled_mm` (sm_89 and later). CPU: the same rounding emulated, to measure
#   errors, not for speed.
KINDS = ("float32", "bfloat16", "fp8")
_FP8 = torch.float8_e4m3fn
_FP8_MAX = torch.finfo(_FP8).max
_TYPICAL_ROWS = 2048  # what oneDNN lays a packed weight out for; it runs with any number of rows


def to_fp8(x_MK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize rows to fp8: (M, K) values in e4m3, and the (M, 1) float32 scales that give them back."""
    scale_M1 = x_MK.abs().amax(1, keepdim=True).float().clamp(min=1e-12) / _FP8_MAX
    return (x_MK.float() / scale_M1).to(_FP8), scale_M1


class InferenceLinear:
    """Linear layer y = x W^T + b of a fixed weight, with an optional exact GELU or residual sum. Not differentiable.

    weight_FD: (F, D); bias_F: (F,) or None. kind: one of `KINDS`. packed: in oneDNN's layout on a CPU, which
    torch.compile cannot take; without it a plain product, for the compiler to fuse.
    Returns float32 for float32 and for sums, else bfloat16.
    Raises CamaeError for another kind and for fp8 widths that 16 does not divide, MissingBackendError where the device
    lacks what the kind needs.
    """

    def __init__(
        self, weight_FD: torch.Tensor, bias_F: torch.Tensor | None, kind: str, *, packed: bool = True
    ):
        if kind not in KINDS:
            raise CamaeError(f"linear layers of kind {kind!r}: choose from {', '.join(KINDS)}")
        self.kind = kind
        self.on_cpu = weight_FD.device.type == "cpu"
        self.onednn = self.on_cpu and packed and kind != "fp8"
        dtype = torch.float32 if kind == "float32" else torch.bfloat16
        weight_FD = weight_FD.detach()
        self.bias_F = None if bias_F is None else bias_F.detach().to(dtype)
        if kind == "fp8":
            self._check_fp8(weight_FD)
            self.weight_FD, self.scale_F1 = to_fp8(weight_FD)
        elif self.onednn:
            if not torch.backends.mkldnn.is_available():
                raise MissingBackendError("this torch has no oneDNN, which packed CPU layers need")
            plain_FD = weight_FD.to(dtype).contiguous()
            self.weight_FD = torch.ops.mkldnn._reorder_linear_weight(plain_FD, _TYPICAL_ROWS)
        else:
            self.weight_FD = weight_FD.to(dtype)

    @staticmethod
    def _check_fp8(weight_FD: torch.Tensor) -> None:
        if any(side % 16 for side in weight_FD.shape):
            raise CamaeError(f"fp8 layers need widths that 16 divides, not {tuple(weight_FD.shape)}")
        if weight_FD.is_cuda and torch.cuda.get_device_capability(weight_FD.device) < (8, 9):
            name = torch.cuda.get_device_name(weight_FD.device)
            raise MissingBackendError(f"fp8 layers need a GPU of compute capability 8.9 or later, not {name}")

    def __call__(
        self, x_TD: torch.Tensor, *, gelu: bool = False, add_TF: torch.Tensor | None = None
    ) -> torch.Tensor:
        """gelu(x W^T + b) or add + x W^T + b, (T, F), of x (T, D)."""
        if self.kind == "fp8":
            return _finish(self._fp8(x_TD), gelu, add_TF)
        if not self.onednn:
            return _finish(F.linear(x_TD.to(self.weight_FD.dtype), self.weight_FD, self.bias_F), gelu, add_TF)
        onednn = torch.ops.mkldnn._linear_pointwise
        if self.kind == "float32" and add_TF is not None:
            return onednn.binary(x_TD, add_TF, self.weight_FD, self.bias_F, "add")
        x_TD = x_TD.float() if self.kind == "float32" else x_TD.bfloat16()
        attribute, form = ("gelu", "none") if gelu else ("none", "")
        return _finish(onednn(x_TD, self.weight_FD, self.bias_F, attribute, [], form), False, add_TF)

    def _fp8(self, x_TD: torch.Tensor) -> torch.Tensor:
        x8_TD, scale_T1 = to_fp8(x_TD)
        if self.on_cpu:
            y_TF = (x8_TD.float() @ self.weight_FD.float().T) * scale_T1 * self.scale_F1.T
            return (y_TF if self.bias_F is None else y_TF + self.bias_F.float()).bfloat16()
        return torch._scaled_mm(
            x8_TD,
            self.weight_FD.t(),
            scale_a=scale_T1,
            scale_b=self.scale_F1.t().contiguous(),
            bias=self.bias_F,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )


def _finish(y_TF: torch.Tensor, gelu: bool, add_TF: torch.Tensor | None) -> torch.Tensor:
    y_TF = F.gelu(y_TF) if gelu else y_TF
    return y_TF if add_TF is None else add_TF + y_TF
