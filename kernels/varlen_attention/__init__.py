"""varlen_attention: attention within the sequences of a packed batch, q and k lengths free.

softmax(q k^T * scale) v for every sequence, without padding. Tokens of a sequence are contiguous; `cu_q` and
`cu_k` say where each begins. Forward 4*Tq*Tk*d FLOPs per head and sequence, backward 2.5 times that; bytes q, k,
v and out once.

Back-ends: `triton` (ours), `torch_varlen` (torch's built-in FlashAttention-2), `flash_attn` (the package, FA2),
`flash_attn_4` (its CuTe form), `native` (ours in C++ for CPUs, float32), `reference` (SDPA over groups
of equal lengths; any device and dtype).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F

from camae.errors import CamaeError
from camae.kernels import _cpu as native
from camae.kernels._dispatch import (
    Backend,
    autocast_dtype,
    choose,
    cuda_package_backend,
    interpreting,
    reference_backend,
    triton_backend,
)
from camae.kernels.varlen_attention import cpu as native_attention
from camae.kernels.varlen_attention.formulas import attention_formulas, sum_dtype
from camae.kernels.varlen_attention.normed import normed_attention_op

Norm = tuple[torch.Tensor, torch.Tensor]
KERNEL_HEAD_DIMS = (16, 32, 64, 128)


def _dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, B: int, scale: float | None) -> torch.Tensor:
    """SDPA over B sequences of equal lengths, (B*Tq, H, d) -> (B*Tq, H, d)."""
    q_BHTd, k_BHSd, v_BHSd = (x.unflatten(0, (B, -1)).transpose(1, 2) for x in (q, k, v))
    out_BHTd = F.scaled_dot_product_attention(q_BHTd, k_BHSd, v_BHSd, scale=scale)
    return out_BHTd.transpose(1, 2).flatten(0, 1)


def _rows(starts: list[int], length: int, device: torch.device) -> torch.Tensor:
    """Row numbers of sequences that begin at `starts`, each `length` long."""
    begin = torch.tensor(starts, dtype=torch.int64)[:, None]
    return (begin + torch.arange(length)).flatten().to(device)


def varlen_attention_reference(
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    lengths_q: Sequence[int],
    lengths_k: Sequence[int],
    scale: float | None = None,
) -> torch.Tensor:
    """Plain SDPA: equal lengths by a reshape, ragged ones in groups of equal (q, k) lengths."""
    pairs = list(zip(lengths_q, lengths_k, strict=True))
    groups: dict[tuple[int, int], list[int]] = {}
    for b, pair in enumerate(pairs):
        groups.setdefault(pair, []).append(b)
    if len(groups) == 1 and all(pairs[0]):
        return _dense(q_THd, k_SHd, v_SHd, len(pairs), scale)
    starts_q, starts_k = (list(accumulate(x, initial=0)) for x in (lengths_q, lengths_k))
    outputs, rows = [], []
    for (Tq, Tk), members in groups.items():
        if Tq == 0:
            continue
        rows_q = _rows([starts_q[b] for b in members], Tq, q_THd.device)
        rows.append(rows_q)
        if Tk == 0:  # nothing to look at: zeros, by definition, and still part of the graph
            outputs.append(q_THd[rows_q] * 0)
            continue
        rows_k = _rows([starts_k[b] for b in members], Tk, q_THd.device)
        outputs.append(_dense(q_THd[rows_q], k_SHd[rows_k], v_SHd[rows_k], len(members), scale))
    if not outputs:
        return q_THd.clone()
    return torch.cat(outputs)[torch.cat(rows).argsort()]


@torch.library.custom_op("camae::varlen_attention", mutates_args=())
def _attention_op(
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    max_q: int,
    max_k: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """out (T, H, d) and log2 of the softmax denominators (H, T)."""
    if q_THd.is_cuda or interpreting():
        from camae.kernels.varlen_attention import triton as varlen_attention_triton

        return varlen_attention_triton.forward(q_THd, k_SHd, v_SHd, cu_q, cu_k, max_q, scale)
    out_THd, lse_HT = attention_formulas(
        q_THd.contiguous(), k_SHd.contiguous(), v_SHd.contiguous(), cu_q, cu_k, scale
    )
    return out_THd, lse_HT.to(sum_dtype(q_THd))


@_attention_op.register_fake
def _(
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    max_q: int,
    max_k: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    T, H, d = q_THd.shape
    return q_THd.new_empty(T, H, d), q_THd.new_empty(H, T, dtype=sum_dtype(q_THd))


@torch.library.custom_op("camae::varlen_attention_backward", mutates_args=())
def _attention_backward_op(
    grad_THd: torch.Tensor,
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    out_THd: torch.Tensor,
    lse_HT: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    max_q: int,
    max_k: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if q_THd.is_cuda or interpreting():
        from camae.kernels.varlen_attention import triton as varlen_attention_triton

        return varlen_attention_triton.backward(
            grad_THd.contiguous(), q_THd, k_SHd, v_SHd, out_THd, lse_HT, cu_q, cu_k, max_q, max_k, scale
        )[:3]
    q_THd, k_SHd, v_SHd = q_THd.contiguous(), k_SHd.contiguous(), v_SHd.contiguous()
    dq, dk, dv = attention_formulas(q_THd, k_SHd, v_SHd, cu_q, cu_k, scale, grad_THd)
    return dq, dk, dv


@_attention_backward_op.register_fake
def _(
    grad_THd: torch.Tensor,
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    out_THd: torch.Tensor,
    lse_HT: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    max_q: int,
    max_k: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return q_THd.new_empty(q_THd.shape), k_SHd.new_empty(k_SHd.shape), v_SHd.new_empty(v_SHd.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    q_THd, k_SHd, v_SHd, cu_q, cu_k, ctx.max_q, ctx.max_k, ctx.scale = inputs
    out_THd, lse_HT = output
    ctx.mark_non_differentiable(lse_HT)
    ctx.save_for_backward(q_THd, k_SHd, v_SHd, out_THd, lse_HT, cu_q, cu_k)


def _backward(ctx: Any, grad_THd: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
    grads = _attention_backward_op(grad_THd, *ctx.saved_tensors, ctx.max_q, ctx.max_k, ctx.scale)
    return (*grads, None, None, None, None, None)


_attention_op.register_autograd(_backward, setup_context=_setup_context)


def lengths_of(cu_seqlens: torch.Tensor) -> tuple[int, ...]:
    """Sequence lengths on the host (reads them back from a device)."""
    return tuple(cu_seqlens.diff().tolist())


def backends(device: torch.device | str = "cpu") -> tuple[Backend, ...]:
    """The op's back-ends and whether each can run on `device`."""
    return (
        triton_backend(device),
        cuda_package_backend("torch_varlen", "torch.nn.attention.varlen", device, "torch's FlashAttention-2"),
        cuda_package_backend("flash_attn", "flash_attn", device, "the package flash-attn (FA2)"),
        cuda_package_backend("flash_attn_4", "flash_attn.cute", device, "the package flash-attn-4 (CuTe)"),
        native.backend(device),
        reference_backend(),
    )


def default_attention(device: torch.device, dtype: torch.dtype, head_dim: int = 64) -> str:
    """The back-end where none is named.

    CUDA, 16-bit: torch's FlashAttention-2, the one with published figures (282-322 TFLOP/s forward at head dim
    64 on an H100); our kernel takes its place when a committed measurement shows it faster. CPU, float32: our C++
    kernel where the processor has its instructions and 16 divides the head dim (bench/results/cpu-2core has it beside
    SDPA). Else plain SDPA.
    """
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        return "torch_varlen"
    fits = dtype == torch.float32 and head_dim % native.WIDTH_STEP == 0
    return "native" if fits and native.backend(device).usable else "reference"


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
    deterministic: ask for a backward pass with a fixed order of additions (`triton` always has one).

    A sequence without keys gives zeros. Raises CamaeError for shapes and dtypes that do not fit,
    MissingBackendError for a back-end that cannot run here.
    """
    _check(q_THd, k_SHd, v_SHd, cu_q, cu_k)
    device, d = q_THd.device, q_THd.shape[-1]
    low = autocast_dtype(device)
    default = default_attention(device, low or q_THd.dtype, d)
    name = choose("varlen_attention", backend, backends(device), default)
    learning = torch.is_grad_enabled() and any(
        x.requires_grad for x in (q_THd, k_SHd, v_SHd, *(q_norm or ()), *(k_norm or ()))
    )
    inside = name == "native" and not learning
    fused = name == "triton" and q_norm is not None and k_norm is not None
    if not (fused or inside):
        q_THd = q_THd if q_norm is None else head_norm(q_THd, *q_norm, norm_eps)
        k_SHd = k_SHd if k_norm is None else head_norm(k_SHd, *k_norm, norm_eps)
    if low:
        q_THd, k_SHd, v_SHd = q_THd.to(low), k_SHd.to(low), v_SHd.to(low)
    if name == "native":
        left = (q_norm, k_norm) if inside else (None, None)
        return _native(q_THd, k_SHd, v_SHd, cu_q, cu_k, scale, *left, norm_eps)
    if lengths_q is None:
        lengths_q = lengths_of(cu_q)
    if lengths_k is None:
        lengths_k = lengths_q if cu_k is cu_q else lengths_of(cu_k)
    if name == "reference":
        return varlen_attention_reference(q_THd, k_SHd, v_SHd, lengths_q, lengths_k, scale)
    maxima = max(lengths_q, default=0), max(lengths_k, default=0)
    scale = d**-0.5 if scale is None else scale
    if name == "triton":
        norms = (*q_norm, *k_norm) if fused else None  # type: ignore[misc]
        return _triton(q_THd, k_SHd, v_SHd, cu_q, cu_k, maxima, scale, norms, norm_eps)
    return _package(name, q_THd, k_SHd, v_SHd, cu_q, cu_k, maxima, scale, deterministic)


class _HeadNorm(torch.autograd.Function):
    """LayerNorm over the head dim that keeps its input as it came, without a copy in the norm's precision."""

    @staticmethod
    def forward(
        ctx: Any, x_THd: torch.Tensor, weight_d: torch.Tensor, bias_d: torch.Tensor, eps: float
    ) -> torch.Tensor:
        ctx.save_for_backward(x_THd, weight_d, bias_d)
        ctx.eps = eps
        return F.layer_norm(x_THd.to(weight_d.dtype), weight_d.shape, weight_d, bias_d, eps).to(x_THd.dtype)

    @staticmethod
    def backward(ctx: Any, grad_THd: torch.Tensor) -> Any:  # type: ignore[override]
        leaves = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        with torch.enable_grad():
            x_THd, weight_d, bias_d = leaves
            again = F.layer_norm(x_THd.to(weight_d.dtype), weight_d.shape, weight_d, bias_d, ctx.eps)
        return *torch.autograd.grad(again, leaves, grad_THd.to(again.dtype)), None


def head_norm(x_THd: torch.Tensor, weight_d: torch.Tensor, bias_d: torch.Tensor, eps: float) -> torch.Tensor:
    """LayerNorm over the last dim, in the precision of the weight, given back in the dtype of x."""
    if x_THd.dtype == weight_d.dtype:
        return F.layer_norm(x_THd, weight_d.shape, weight_d, bias_d, eps)
    return _HeadNorm.apply(x_THd, weight_d, bias_d, eps)


def _native(
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    scale: float | None,
    q_norm: Norm | None,
    k_norm: Norm | None,
    norm_eps: float,
) -> torch.Tensor:
    d, step = q_THd.shape[-1], native.WIDTH_STEP
    if q_THd.dtype != torch.float32 or d % step:
        raise CamaeError(
            f"attention back-end 'native' takes float32 and head dims that {step} divides, not {q_THd.dtype} and {d}"
        )
    scale = d**-0.5 if scale is None else scale
    return native_attention.native_attention(q_THd, k_SHd, v_SHd, cu_q, cu_k, scale, q_norm, k_norm, norm_eps)


def _triton(
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    maxima: tuple[int, int],
    scale: float,
    norms: tuple[torch.Tensor, ...] | None,
    norm_eps: float,
) -> torch.Tensor:
    d = q_THd.shape[-1]
    if d not in KERNEL_HEAD_DIMS:
        raise CamaeError(f"the attention kernels have head dims {KERNEL_HEAD_DIMS}, not {d}")
    if q_THd.is_cuda and q_THd.dtype not in (torch.bfloat16, torch.float16):
        raise CamaeError(
            f"the attention kernels take bf16 or fp16, not {q_THd.dtype}; use backend='reference'"
        )
    q_THd, k_SHd, v_SHd = (x if x.stride(-1) == 1 else x.contiguous() for x in (q_THd, k_SHd, v_SHd))
    if norms is not None:
        return normed_attention_op(q_THd, k_SHd, v_SHd, *norms, cu_q, cu_k, *maxima, scale, norm_eps)[0]
    return _attention_op(q_THd, k_SHd, v_SHd, cu_q, cu_k, *maxima, scale)[0]


def _package(
    name: str,
    q_THd: torch.Tensor,
    k_SHd: torch.Tensor,
    v_SHd: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    maxima: tuple[int, int],
    scale: float,
    deterministic: bool,
) -> torch.Tensor:
    """Someone else's kernel, with the arguments that every version of it has."""
    if q_THd.numel() == 0 or maxima[1] == 0:
        return torch.zeros_like(q_THd)
    if name == "torch_varlen":
        from torch.nn.attention.varlen import varlen_attn

        if deterministic and q_THd.requires_grad and not torch.are_deterministic_algorithms_enabled():
            raise CamaeError(
                "torch_varlen is deterministic only under torch.use_deterministic_algorithms(True); set it or use "
                "backend='triton'"
            )
        # Its `scale` argument moves between versions: put the factor into q.
        factor = scale * math.sqrt(q_THd.shape[-1])
        q_THd = q_THd if math.isclose(factor, 1) else q_THd * factor
        return varlen_attn(q_THd, k_SHd, v_SHd, cu_q, cu_k, *maxima)  # type: ignore[return-value]
    if name == "flash_attn":
        from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]
    else:
        from flash_attn.cute import flash_attn_varlen_func  # type: ignore[import-not-found]
    options: dict[str, Any] = {"softmax_scale": scale, "deterministic": deterministic}
    names = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
    sequences = dict(zip(names, (cu_q, cu_k, *maxima), strict=True))
    result = flash_attn_varlen_func(q_THd, k_SHd, v_SHd, **sequences, **options)
    return result[0] if isinstance(result, tuple) else result


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
