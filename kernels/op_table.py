"""Table of back-ends: which one every op would use on a device, and why, for `camae doctor`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from camae.kernels._dispatch import (
    USUAL_SIZES,
    Backend,
    attention_preference,
    backends_of,
    default_backend,
)

OPS = (
    "tokenize",
    "reconstruction_loss",
    "varlen_attention",
    "residual_norm",
    "gelu_split",
    "lion",
    "transformer_block",
)


@dataclass(frozen=True)
class OpRow:
    """One op: the back-end used when none is named, the reason, and all that it has."""

    op: str
    default: str
    why: str
    backends: tuple[Backend, ...]


_WHY = {
    "triton": "our kernels; their times on an H100 stand in bench/FLOORS.md",
    "reference": "plain torch: the form for a device without kernels",
    "native": "our C++ kernel, faster than SDPA on the CPUs measured",
}
_BLOCK_WHY = {
    "native": "packed weights wherever a model is only read: whole blocks in two C++ ops",
    "reference": "layer by layer: no C++ block for this device",
}


def op_table(device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> list[OpRow]:
    """One row for every op of this package that a model or its training uses.

    dtype: of attention's inputs; None: bf16 on CUDA, fp32 elsewhere.
    """
    rows = []
    for op in OPS:
        default, available = default_backend(op, device, dtype), backends_of(op, device)
        chosen = next(b for b in available if b.name == default)
        why = _why(op, default, torch.device(device), dtype) if chosen.usable else f"cannot run: {chosen.why}"
        rows.append(OpRow(op, default, why, available))
    return rows


def _why(op: str, default: str, device: torch.device, dtype: torch.dtype | None) -> str:
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if op == "transformer_block":
        return _BLOCK_WHY[default]
    row = attention_preference(device, dtype, USUAL_SIZES[op]) if op == "varlen_attention" else None
    return _WHY[default] if row is None else row.why


def op_backends(device: torch.device | str | None = None) -> dict[str, str]:
    """The back-end each op uses by default on `device`; None is the GPU when there is one, else the CPU."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return {row.op: row.default for row in op_table(device)}
