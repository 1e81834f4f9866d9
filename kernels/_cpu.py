"""CPU kernels in C++ (camae._native): their instruction sets, and tensors as they take them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from types import ModuleType

import numpy as np
import numpy.typing as npt
import torch

from camae.errors import MissingBackendError

WIDTH_STEP = 16  # what divides the widths they take
MISSING = "needs camae's native module on an x86-64 processor with AVX2 or AVX-512"
Norm = tuple[torch.Tensor, torch.Tensor]  # weight and bias
FloatArray = npt.NDArray[np.float32]


@cache
def instructions(precision: str = "float32") -> tuple[str, ...]:
    """Instruction sets of this processor that the kernels are compiled for, best first.

    precision: of products, "float32" ("avx512", "avx2") or "bfloat16" ("avx512_bf16").
    """
    try:
        return tuple(importlib.import_module("camae._native").cpu_instructions(precision))
    except ImportError:
        return ()


@cache
def has_tiles() -> bool:
    """Whether this processor has tile products of bfloat16 (AMX), which torch's products and SDPA use."""
    try:
        return bool(importlib.import_module("camae._native").has_tiles())
    except ImportError:
        return False


def processor_instructions() -> tuple[str, ...]:
    """All that is known of this processor: "avx2", "avx512", "avx512_bf16", "amx", the last ones the newest."""
    return (*reversed(instructions()), *instructions("bfloat16"), *(("amx",) if has_tiles() else ()))


def native_module(op: str) -> ModuleType:
    """camae._native, for `op`. Raises MissingBackendError where it has no kernel for this processor."""
    if not instructions():
        raise MissingBackendError(f"{op} back-end 'native': {MISSING}")
    return importlib.import_module("camae._native")


def arrays(*tensors: torch.Tensor) -> list[FloatArray]:
    """NumPy views with the last dim contiguous, or copies."""
    return [(x if x.stride(-1) == 1 else x.contiguous()).detach().numpy() for x in tensors]


def optional_arrays(*tensors: torch.Tensor | None) -> list[FloatArray | None]:
    """`arrays` where some may be None."""
    return [None if x is None else arrays(x)[0] for x in tensors]


def fingerprint(tensors: Sequence[torch.Tensor]) -> int:
    """64 bits that follow from all bytes of contiguous float32 tensors: other ones after any change of a value."""
    return int(native_module("fingerprint").fingerprint(arrays(*tensors), torch.get_num_threads()))


def bounds(*cu_seqlens: torch.Tensor) -> Sequence[npt.NDArray[np.int64]]:
    """Sequence boundaries, as the kernels take them."""
    return [x.to(torch.int64).numpy() for x in cu_seqlens]


def stacked(norm: Norm | None) -> torch.Tensor | None:
    """Weight and bias of a norm as the kernels take them, (2, d) float32."""
    return None if norm is None else torch.stack([x.detach() for x in norm]).float()
