"""C++ back-end of `transformer_block` on CPUs (`native`): packed weights and two torch.library ops.

csrc/attention/attention.cpp and block.cpp, compiled for AVX-512 and AVX2 in float32, and for AVX512_BF16: products of
factors rounded to bfloat16, sums, norms, softmax, GELU and the token stream in float32.
"""

from __future__ import annotations

import torch

from camae.errors import CamaeError
from camae.kernels._cpu import WIDTH_STEP, arrays, bounds, instructions, native_module, optional_arrays


def fits(*widths: int) -> bool:
    """Whether the kernels take layers of these widths."""
    return all(width > 0 and width % WIDTH_STEP == 0 for width in widths)


def pack_weight(weight_FD: torch.Tensor, instruction_set: str | None = None) -> torch.Tensor:
    """A weight (F, D) as the ops take it, (F / 64 rounded up, D, 64) float32; once for all calls.

    instruction_set: of the ops that will take it; None: the best in float32. For "avx512_bf16" (., D / 2, 64) units of
        32 bits, each of two bfloat16.

    Raises CamaeError for widths that 16 does not divide, MissingBackendError without a kernel for this processor.
    """
    native = native_module("block")
    if not fits(*weight_FD.shape):
        raise CamaeError(
            f"the native block needs widths that {WIDTH_STEP} divides, not {tuple(weight_FD.shape)}"
        )
    return torch.from_numpy(
        native.pack_weight(*arrays(weight_FD.float()), instruction_set or instructions()[0])
    )


@torch.library.custom_op("camae::cpu_self_attention", mutates_args=())
def self_attention_op(
    x_TD: torch.Tensor,
    norm_2D: torch.Tensor | None,
    eps: float,
    panels: list[torch.Tensor],
    bias_3D: torch.Tensor | None,
    heads: int,
    q_norm_2d: torch.Tensor | None,
    k_norm_2d: torch.Tensor | None,
    head_eps: float,
    cu: torch.Tensor,
    scale: float,
    instruction_set: str,
) -> torch.Tensor:
    """Attention, (T, D), of q, k, v = LN(x) W^T + b; `panels`: three weights by `pack_weight`."""
    out_TD = x_TD.new_empty(x_TD.shape)
    norm, bias, q_norm, k_norm = optional_arrays(norm_2D, bias_3D, q_norm_2d, k_norm_2d)
    native_module("block").self_attention(
        *arrays(x_TD),
        norm,
        eps,
        *arrays(*panels),
        bias,
        heads,
        q_norm,
        k_norm,
        head_eps,
        *bounds(cu),
        scale,
        *arrays(out_TD),
        torch.get_num_threads(),
        instruction_set,
    )
    return out_TD


@self_attention_op.register_fake
def _(
    x_TD: torch.Tensor,
    norm_2D: torch.Tensor | None,
    eps: float,
    panels: list[torch.Tensor],
    bias_3D: torch.Tensor | None,
    heads: int,
    q_norm_2d: torch.Tensor | None,
    k_norm_2d: torch.Tensor | None,
    head_eps: float,
    cu: torch.Tensor,
    scale: float,
    instruction_set: str,
) -> torch.Tensor:
    return x_TD.new_empty(x_TD.shape)


@torch.library.custom_op("camae::cpu_block_tail", mutates_args=())
def block_tail_op(
    x_TD: torch.Tensor,
    attended_TD: torch.Tensor,
    proj: torch.Tensor,
    proj_bias_D: torch.Tensor | None,
    parallel: bool,
    norm_2D: torch.Tensor | None,
    eps: float,
    panels_in: torch.Tensor,
    bias_H: torch.Tensor | None,
    panels_out: torch.Tensor,
    bias_D: torch.Tensor | None,
    instruction_set: str,
) -> torch.Tensor:
    """y = x + attended Wp^T + bp; y + gelu(LN(x if parallel else y) W1^T + b1) W2^T + b2, (T, D)."""
    out_TD = x_TD.new_empty(x_TD.shape)
    proj_bias, norm, bias_in, bias_out = optional_arrays(proj_bias_D, norm_2D, bias_H, bias_D)
    native_module("block").block_tail(
        *arrays(x_TD, attended_TD, proj),
        proj_bias,
        parallel,
        norm,
        eps,
        *arrays(panels_in),
        bias_in,
        *arrays(panels_out),
        bias_out,
        *arrays(out_TD),
        torch.get_num_threads(),
        instruction_set,
    )
    return out_TD


@block_tail_op.register_fake
def _(
    x_TD: torch.Tensor,
    attended_TD: torch.Tensor,
    proj: torch.Tensor,
    proj_bias_D: torch.Tensor | None,
    parallel: bool,
    norm_2D: torch.Tensor | None,
    eps: float,
    panels_in: torch.Tensor,
    bias_H: torch.Tensor | None,
    panels_out: torch.Tensor,
    bias_D: torch.Tensor | None,
    instruction_set: str,
) -> torch.Tensor:
    return x_TD.new_empty(x_TD.shape)
