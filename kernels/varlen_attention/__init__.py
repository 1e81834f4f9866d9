"""varlen_attention: variable-length multi-head attention within the sequences of a packed batch.

softmax(q k^T * scale) v for every sequence, without padding. Tokens of a sequence are contiguous; `cu_q` and
`cu_k` say where each begins. Forward 4*Tq*Tk*d FLOPs per head and sequence, backward 2.5 times that; bytes q, k,
v and out once.

Back-ends: `triton` (ours), `triton_atomic` (ours, with a backward pass of 5 products in place of 7, whose gradient of q
is added by atomics in no fixed order), `torch_varlen` (torch's built-in FlashAttention-2), `flash_attn` (the package,
FA2), `flash_attn_3` and `flash_attn_4` (its forms for Hopper and in CuTe), `cudnn` (through SDPA), `native` (ours in
C++ for CPUs, float32), `reference` (SDPA over groups of equal lengths; any device and dtype).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from camae.errors import CamaeError
from camae.kernels import _dispatch
from camae.kernels._cpu import Norm
from camae.kernels._device import autocast_dtype
from camae.kernels.varlen_attention import cpu
from camae.kernels.varlen_attention.head_norm import head_norm
from camae.kernels.varlen_attention.normed import normed_attention_op
from camae.kernels.varlen_attention.packages import cudnn_attention, package_attention
from camae.kernels.varlen_attention.reference import varlen_attention_reference
from camae.kernels.varlen_attention.registration import attention_op

TRITON = ("triton", "triton_atomic")


def lengths_of(cu_seqlens: torch.Tensor) -> tuple[int, ...]:
    """Sequence lengths on the host (reads them back from a device)."""
    return tuple(cu_seqlens.diff().tolist())


def backends(device: torch.device | str = "cpu") -> tuple[_dispatch.Backend, ...]:
    """The op's back-ends and whether each can run on `device`."""
    return _dispatch.backends_of("varlen_attention", device)


def varlen_attention(
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    *,
    backend: str | None = None,
    scale: float | None = None,
    lengths_q: Sequence[int] | None = None,
    lengths_k: Sequence[int] | None = None,
    q_norm: Norm | None = None,
    k_norm: Norm | None = None,
    norm_eps: float = 1e-6,
    deterministic: bool = False,
) -> torch.Tensor:
    """softmax(q k^T * scale) v within every sequence, (T, H, d).

    q_THd: (T, H, d), k_SHd and v_SHd: (S, H, d), packed; cu_q, cu_k: (B + 1,) int32 where sequences begin.
    scale: None: 1 / sqrt(d).
    lengths_q, lengths_k: the lengths on the host, so that none is read back from a device.
    q_norm, k_norm: (weight_d, bias_d) of a LayerNorm over the head dim, applied first; inside the kernels by
        `triton` where both are given and by `native` where no gradient is asked, before attention elsewhere.
    deterministic: ask for a backward pass with a fixed order of additions (`triton` always has one, `triton_atomic`
        never).

    A sequence without keys gives zeros. Raises CamaeError for shapes and dtypes that do not fit,
    MissingBackendError for a back-end that cannot run here.
    """
    _check(q_THd, k_SHd, v_SHd, cu_q, cu_k)
    d, low = q_THd.shape[-1], autocast_dtype(q_THd.device)
    name = _dispatch.choose("varlen_attention", backend, q_THd.device, low or q_THd.dtype, d)
    if not _norms_inside(name, q_THd, k_SHd, v_SHd, q_norm, k_norm):
        q_THd = q_THd if q_norm is None else head_norm(q_THd, *q_norm, norm_eps)
        k_SHd = k_SHd if k_norm is None else head_norm(k_SHd, *k_norm, norm_eps)
        q_norm = k_norm = None
    if name == "native":
        dtype = low or q_THd.dtype
        if dtype.itemsize == 2:  # inputs as they are, in float32; the result in 16 bits
            q_THd, k_SHd, v_SHd = q_THd.float(), k_SHd.float(), v_SHd.float()
        out_THd = cpu.cpu_attention(q_THd, k_SHd, v_SHd, cu_q, cu_k, scale, q_norm, k_norm, norm_eps)
        return out_THd.to(dtype)
    if low:
        q_THd, k_SHd, v_SHd = q_THd.to(low), k_SHd.to(low), v_SHd.to(low)
    if lengths_q is None:
        lengths_q = lengths_of(cu_q)
    if lengths_k is None:
        lengths_k = lengths_q if cu_k is cu_q else lengths_of(cu_k)
    if name == "reference":
        return varlen_attention_reference(q_THd, k_SHd, v_SHd, lengths_q, lengths_k, scale)
    if name == "cudnn":
        return cudnn_attention(q_THd, k_SHd, v_SHd, lengths_q, lengths_k, scale)
    maxima = max(lengths_q, default=0), max(lengths_k, default=0)
    scale = d**-0.5 if scale is None else scale
    if name in TRITON:
        if deterministic and name == "triton_atomic":
            raise CamaeError(
                "triton_atomic adds the gradient of q in no fixed order; ask for backend='triton' with deterministic"
            )
        options = (norm_eps, name == "triton_atomic")
        return _triton(q_THd, k_SHd, v_SHd, cu_q, cu_k, maxima, scale, q_norm, k_norm, *options)
    return package_attention(name, q_THd, k_SHd, v_SHd, cu_q, cu_k, maxima, scale, deterministic)


def _norms_inside(
    name: str,
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    q_norm: Norm | None,
    k_norm: Norm | None,
) -> bool:
    """Whether the back-end applies the norms itself: Triton takes both or none, the C++ kernel has no gradient."""
    if name in TRITON:
        return q_norm is not None and k_norm is not None
    tensors = (q_THd, k_SHd, v_SHd, *(q_norm or ()), *(k_norm or ()))
    learning = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    return name == "native" and not learning


def _triton(
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    maxima: tuple[int, int],
    scale: float,
    q_norm: Norm | None,
    k_norm: Norm | None,
    norm_eps: float,
    atomic: bool,
) -> torch.Tensor:
    d = q_THd.shape[-1]
    if d not in _dispatch.KERNEL_HEAD_DIMS:
        raise CamaeError(f"the attention kernels have head dims {_dispatch.KERNEL_HEAD_DIMS}, not {d}")
    if q_THd.is_cuda and q_THd.dtype not in (torch.bfloat16, torch.float16):
        raise CamaeError(
            f"the attention kernels take bf16 or fp16, not {q_THd.dtype}; use backend='reference'"
        )
    q_THd, k_SHd, v_SHd = (x if x.stride(-1) == 1 else x.contiguous() for x in (q_THd, k_SHd, v_SHd))
    if q_norm is not None and k_norm is not None:
        norms = (*q_norm, *k_norm)
        return normed_attention_op(q_THd, k_SHd, v_SHd, *norms, cu_q, cu_k, *maxima, scale, norm_eps, atomic)[
            0
        ]
    return attention_op(q_THd, k_SHd, v_SHd, cu_q, cu_k, *maxima, scale, atomic)[0]


def _check(
    q_THd: torch.Tensor, k_SHd: torch.Tensor, v_SHd: torch.Tensor, cu_q: torch.Tensor, cu_k: torch.Tensor
) -> None:
    if q_THd.ndim != 3 or k_SHd.shape != v_SHd.shape or q_THd.shape[1:] != k_SHd.shape[1:]:
        raise CamaeError(
            f"attention needs q (T, H, d) and k, v (S, H, d), got {tuple(q_THd.shape)}, "
            f"{tuple(k_SHd.shape)}, {tuple(v_SHd.shape)}"
        )
    if cu_q.ndim != 1 or cu_q.shape != cu_k.shape or len(cu_q) < 1:
        raise CamaeError(
            f"cu_q and cu_k must both be (B + 1,), got {tuple(cu_q.shape)} and {tuple(cu_k.shape)}"
        )
