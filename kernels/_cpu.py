"""The C++ CPU kernels of camae's native module: which instruction sets they have here."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from camae.errors import MissingBackendError
from camae.kernels._dispatch import Backend

WIDTH_STEP = 16  # what divides the widths they take
Norm = tuple[torch.Tensor, torch.Tensor]


@cache
def instructions() -> tuple[str, ...]:
    """Instruction sets of this processor that the kernels are compiled for, best first."""
    try:
        from camae import _native
    except ImportError:
        return ()
    return tuple(_native.cpu_instructions())


def backend(device: torch.device | str) -> Backend:
    """The back-end and whether it can run on `device`."""
    if torch.device(device).type != "cpu":
        return Backend("native", False, "our C++ kernel is for CPUs")
    if not instructions():
        return Backend(
            "native", False, "needs camae's native module on an x86-64 processor with AVX2 or AVX-512"
        )
    return Backend("native", True, f"our C++ kernel ({instructions()[0]}), float32")


def module(op: str) -> Any:
    """camae._native, for `op`. Raises MissingBackendError where it has no kernel for this processor."""
    if not instructions():
        raise MissingBackendError(f"{op} back-end 'native': {backend('cpu').why}")
    from camae import _native

    return _native


def arrays(*tensors: torch.Tensor) -> list[Any]:
    """NumPy views with the last dim contiguous, or copies."""
    return [(x if x.stride(-1) == 1 else x.contiguous()).detach().numpy() for x in tensors]


def bounds(*cu: torch.Tensor) -> list[Any]:
    """Where sequences begin and end, as the kernels take it."""
    return [x.to(torch.int64).numpy() for x in cu]


def optional_arrays(*tensors: torch.Tensor | None) -> list[Any]:
    """`arrays` where some may be None."""
    return [None if x is None else arrays(x)[0] for x in tensors]


def stacked(norm: Norm | None) -> torch.Tensor | None:
    """Weight and bias of a norm as the kernels take them, (2, d) float32."""
    return None if norm is None else torch.stack([x.detach() for x in norm]).float()
