"""native_attention: attention within the sequences of a packed batch on a CPU, float32, forward only.

The `native` back-end of `varlen_attention`: csrc/attention_kernel.h, compiled for AVX-512 and for AVX2, with the
LayerNorm of q and k over the head dim inside. A sequence's numbers do not depend on what else is in the batch nor
on the number of threads. Not differentiable.
"""

from __future__ import annotations

from functools import cache

import torch

from camae.errors import MissingBackendError
from camae.kernels.backends import Backend

Norm = tuple[torch.Tensor, torch.Tensor]
DIM_STEP = 16  # what divides the head dims it takes


@cache
def instructions() -> tuple[str, ...]:
    """Instruction sets of this processor that the kernel is compiled for, best first."""
    try:
        from camae import _native
    except ImportError:
        return ()
    return tuple(_native.attention_instructions())


def backend(device: torch.device | str) -> Backend:
    """The back-end and whether it can run on `device`."""
    if torch.device(device).type != "cpu":
        return Backend("native", False, "our C++ kernel is for CPUs")
    if not instructions():
        return Backend(
            "native", False, "needs camae's native module on an x86-64 processor with AVX2 or AVX-512"
        )
    return Backend("native", True, f"our C++ kernel ({instructions()[0]}), float32, forward only")


@torch.library.custom_op("camae::native_attention", mutates_args=())
def native_attention_op(
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    scale: float,
    q_norm_2d: torch.Tensor | None,
    k_norm_2d: torch.Tensor | None,
    eps: float,
    instruction_set: str,
) -> torch.Tensor:
    """softmax(LN(q) LN(k)^T * scale) v, (T, H, d) float32; norms as (2, d) weight and bias."""
    if not instructions():
        raise MissingBackendError(f"attention back-end 'native': {backend('cpu').why}")
    from camae import _native

    arrays = (x if x.stride(-1) == 1 else x.contiguous() for x in (q_THd, k_SHd, v_SHd))
    norms = (None if x is None else x.numpy() for x in (q_norm_2d, k_norm_2d))
    out_THd = torch.empty(q_THd.shape)
    _native.attention(
        *(x.numpy() for x in arrays),
        out_THd.numpy(),
        *(x.to(torch.int64).numpy() for x in (cu_q, cu_k)),
        scale,
        *norms,
        eps,
        torch.get_num_threads(),
        instruction_set,
    )
    return out_THd


@native_attention_op.register_fake
def _(
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    scale: float,
    q_norm_2d: torch.Tensor | None,
    k_norm_2d: torch.Tensor | None,
    eps: float,
    instruction_set: str,
) -> torch.Tensor:
    return q_THd.new_empty(q_THd.shape)


def native_attention(
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    scale: float,
    q_norm: Norm | None = None,
    k_norm: Norm | None = None,
    eps: float = 1e-6,
) -> torch.Tensor:
    """The op with the best instruction set of this processor; arguments as in `varlen_attention`."""
    norms = (None if n is None else torch.stack([x.detach() for x in n]).float() for n in (q_norm, k_norm))
    return native_attention_op(q_THd, k_SHd, v_SHd, cu_q, cu_k, scale, *norms, eps, instructions()[0])
