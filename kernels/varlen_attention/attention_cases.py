"""Compile-ahead cases of the attention kernels: every configuration that is shipped."""

from __future__ import annotations

from camae.kernels._compile_ahead import CompileCase
from camae.kernels.varlen_attention.head_norm_triton import key_norm_case
from camae.kernels.varlen_attention.tile_table import HEAD_DIMS, frozen_config
from camae.kernels.varlen_attention.triton_atomic import QUERY_ROWS, query_finish_kernel, query_prepare_kernel
from camae.kernels.varlen_attention.triton_backward import key_gradient_kernel, query_gradient_kernel
from camae.kernels.varlen_attention.triton_forward import forward_kernel


def attention_cases(arch: str) -> list[CompileCase]:
    """Every head dim in bf16 without and with the norms of q and k, those of the presets in fp16."""
    shapes = [(head, normed, "bf16") for head in HEAD_DIMS for normed in (False, True)]
    shapes += [(head, normed, "fp16") for head in (32, 64) for normed in (False, True)]
    return [case for shape in shapes for case in _compile_cases(arch, *shape)]


def _compile_cases(arch: str, head: int, normed: bool, dtype: str) -> list[CompileCase]:
    found, config = [], frozen_config(arch, head, normed)
    strides = ("q_row", "q_head", "k_row", "k_head", "v_row", "v_head")
    written_rows = ("grad_q_row", "grad_k_row", "grad_v_row")
    integers = dict.fromkeys((*strides, *written_rows, "T", "S", "heads", "tiles"), "i32")
    sequences = {"cu_q": "*i32", "cu_k": "*i32", "lse": "*fp32"}
    vectors = ("key_rstd", "q_weight", "q_bias", "k_weight", "sums")
    key_tensors = ("q", "k", "v", "grad_out", "grad_k", "grad_v")
    short = [] if config.short is None else [(forward_kernel, config.short, ("q", "k", "v", "out"), False)]
    for kernel, tile, written, atomic in (
        *short,
        (forward_kernel, config.forward, ("q", "k", "v", "out"), False),
        (query_gradient_kernel, config.queries, ("q", "k", "v", "out", "grad_out", "grad_q"), False),
        (key_gradient_kernel, config.keys, key_tensors, False),
        (key_gradient_kernel, config.atomic, key_tensors, True),
    ):
        forwards = kernel is forward_kernel
        types = {**sequences, **integers, **dict.fromkeys(written, f"*{dtype}"), "eps": "fp32"}
        types |= {"scale_log2": "fp32"} if forwards else {"scale": "fp32", "delta": "*fp32"}
        constants: dict[str, object] = {"HEAD": head, "BLOCK_M": tile.queries, "BLOCK_N": tile.keys}
        if normed:
            types |= {**dict.fromkeys(vectors, "*fp32"), "folded": f"*{dtype}"}
        else:
            constants |= {n: None for n in (*vectors, "folded") if n in kernel.arg_names}
        if atomic:
            types["grad_q"] = "*fp32"
        elif kernel is key_gradient_kernel:
            constants["grad_q"] = None
        name = f"{kernel.__name__.removesuffix('_kernel')} d{head} {dtype}{', normed' if normed else ''}"
        name += ", short" if tile is config.short else ", atomic" if atomic else ""
        found.append(
            CompileCase(
                "varlen_attention",
                name,
                kernel,
                types,
                constants,
                tile.warps,
                tile.stages,
                (*strides, *written_rows),
            )
        )
    found += _row_cases(head, normed, dtype)
    if normed:
        found.append(key_norm_case(head, dtype))
    return found


def _row_cases(head: int, normed: bool, dtype: str) -> list[CompileCase]:
    """The kernels over rows of queries that `triton_atomic` adds, on 16-bit queries."""
    found = []
    vectors = ("q_weight", "q_bias", "k_weight", "sums", "folded")
    for kernel in (query_prepare_kernel, query_finish_kernel):
        names = kernel.arg_names
        types = dict.fromkeys(("q", "out", "grad_out", "grad_q"), f"*{dtype}")
        types |= dict.fromkeys(("delta", "dq"), "*fp32")
        types |= dict.fromkeys(("q_row", "q_head", "grad_q_row", "T", "heads"), "i32")
        types |= {"eps": "fp32", "scale": "fp32"}
        constants: dict[str, object] = {"HEAD": head, "BLOCK_M": QUERY_ROWS}
        if normed:
            types |= {**dict.fromkeys(vectors, "*fp32"), "folded": f"*{dtype}"}
        else:
            constants |= {name: None for name in vectors if name in names}
        name = f"{kernel.__name__.removesuffix('_kernel')} d{head} {dtype}{', normed' if normed else ''}"
        rows = ("q_row", "q_head", "grad_q_row")
        found.append(CompileCase("varlen_attention", name, kernel, types, constants, 4, 1, rows, False))
    return found
