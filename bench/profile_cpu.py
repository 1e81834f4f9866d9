"""Profile by op on a CPU: a block in embedding, and a training step, in float32 and bfloat16, with their floors.

Shell: `python bench/profile_cpu.py [OUT.jsonl] [--small] [CASE]`, CASE a part of the names wanted; default
bench/results/<device>/profile.jsonl. A row per case: milliseconds by op, how often it is called, and where its FLOPs or
bytes are counted the floor: products at the measured rate of the largest one in the same precision, bytes at that of a
copy. On a shared machine other processes only ever add time: each call counts with its least over rounds, and on one
thread in CPU time; ops of a training step are on the wall clock of torch's profiler (`ops_ms` is their sum, `ms` the
step in CPU time).
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from plain_encoder import PlainBlock
from rows import append_row, machine
from torch.profiler import ProfilerActivity, profile

from camae.inference.inference_block import FusedBlock, block_layers
from camae.kernels._cpu import instructions
from camae.kernels.transformer_block import block_tail_op, self_attention_op
from camae.model import CAMAE, preset
from camae.model.blocks import ParallelBlock
from camae.reproduction.model_settings import SMALL_CA_MAE
from camae.training.process import keep_freed_pages

ROUNDS, LARGEST = 12, 24
NAMES = ("DNA", "RNA", "ER", "AGP", "Mito", "Actin")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Op = tuple[Callable[[], object], float, float]  # call, FLOPs, bytes


def least(run: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Seconds of the fastest of some calls; on one thread of the processor, not of the wall clock."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    run()
    found = []
    for _ in range(rounds):
        start = clock()
        run()
        found.append(clock() - start)
    return min(found)


@lru_cache
def limits(precision: str) -> tuple[float, float]:
    """(bytes/s of a copy, FLOP/s of the fastest product) here and now: 1024 x 1024, and the block's MLP."""
    source = torch.empty(2**26, dtype=torch.uint8)
    target = torch.empty_like(source)
    rates = []
    for T, D, out in ((1024, 1024, 1024), (1537, 384, 1536), (1537, 1536, 384)):
        x, w = (torch.randn(*shape).to(DTYPES[precision]) for shape in ((T, D), (out, D)))
        packed = torch.ops.mkldnn._reorder_linear_weight(w, T)
        runs = (
            lambda x=x, w=w: F.linear(x, w),
            lambda x=x, w=packed: torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], ""),
        )
        rates += [2 * T * D * out / least(run) for run in runs]
    return 2 * source.numel() / least(lambda: target.copy_(source)), max(rates)


def eager_ops(block: ParallelBlock, T: int, precision: str) -> dict[str, Op]:
    """Ops of a parallel block in eager torch on one sequence of T tokens, as autocast orders them."""
    plain, D, heads, dtype = PlainBlock(block), block.gamma.numel(), block.heads, DTYPES[precision]
    hidden, size, d = block.mlp_bias.numel(), dtype.itemsize, D // block.heads
    x = torch.randn(1, T, D)
    wide = torch.randn(1, T, hidden + 3 * D).to(dtype)
    normed, mlp = torch.randn(1, T, D).to(dtype), torch.randn(1, T, hidden).to(dtype)
    q, k, v = (torch.randn(1, T, heads, d).to(dtype).transpose(1, 2) for _ in range(3))
    layers = {
        name: (getattr(plain, name).weight.to(dtype), bias.to(dtype))
        for name, bias in (
            ("in_proj", plain.in_bias),
            ("attn_out_proj", plain.attn_out_proj.bias),
            ("mlp_out_proj", plain.mlp_out_proj.bias),
        )
    }

    def heads_normed() -> None:
        plain.q_norm(wide[..., hidden : hidden + D].float().unflatten(2, (heads, d)))
        plain.k_norm(wide[..., hidden + D : hidden + 2 * D].float().unflatten(2, (heads, d)))

    def weights(*names: str) -> float:
        return size * sum(layers[name][0].numel() for name in names)

    wide_bytes = size * T * (hidden + 3 * D)
    return {
        "norm": (lambda: plain.in_norm(x).to(dtype), 0, T * D * (4 + size)),
        "in-projection": (
            lambda: F.linear(normed, *layers["in_proj"]),
            2 * T * D * (hidden + 3 * D),
            size * T * D + wide_bytes + weights("in_proj"),
        ),
        "norms of q and k": (heads_normed, 0, 4 * size * T * D),
        "attention": (lambda: F.scaled_dot_product_attention(q, k, v), 4 * T * T * D, 4 * size * T * D),
        "GELU": (lambda: F.gelu(mlp), 0, 2 * size * T * hidden),
        "out-projections": (
            lambda: F.linear(normed, *layers["attn_out_proj"]) + F.linear(mlp, *layers["mlp_out_proj"]),
            2 * T * D * (D + hidden),
            size * T * (hidden + 5 * D) + weights("attn_out_proj", "mlp_out_proj"),
        ),
        "LayerScale and residual": (lambda: x + normed * plain.gamma, 0, T * D * (8 + size)),
    }


def native_ops(block: ParallelBlock, T: int, precision: str) -> dict[str, Op]:
    """The same block in our two C++ ops."""
    fused, D, hidden = FusedBlock(block_layers(block), precision), block.gamma.numel(), block.mlp_bias.numel()
    x, cu, size = torch.randn(T, D), torch.tensor([0, T], dtype=torch.int32), DTYPES[precision].itemsize
    heads = (fused.heads, fused.q_norm, fused.k_norm, fused.head_eps, cu, fused.scale, fused.instruction_set)
    tail = (*fused.proj, True, *fused.mlp_norm, *fused.mlp_in, *fused.mlp_out, fused.instruction_set)
    return {
        f"self_attention ({fused.instruction_set})": (
            lambda: self_attention_op(x, *fused.norm, fused.qkv, fused.qkv_bias, *heads),
            T * (6 * D * D + 4 * T * D),
            8 * T * D + size * 3 * D * D,
        ),
        f"block_tail ({fused.instruction_set})": (
            lambda: block_tail_op(x, x, *tail),
            2 * T * D * (D + 2 * hidden),
            12 * T * D + size * D * (D + 2 * hidden),
        ),
    }


def block_row(form: str, precision: str, small: bool) -> dict[str, Any]:
    """Ops of an S/16 block on one crop of six channels, each beside its floor."""
    T = 193 if small else 1537
    torch.manual_seed(0)
    block = ParallelBlock(preset("ca_mae_vit_s16"), 0.0).eval().requires_grad_(False)
    ops = (native_ops if form == "native" else eager_ops)(block, T, precision)
    bandwidth, rate = limits(precision)
    rows = []
    with torch.inference_mode():
        for name, (run, flops, size) in ops.items():
            seconds, floor = least(run), max(flops / rate, size / bandwidth)
            rows.append(
                {"op": name, "ms": 1e3 * seconds, "floor_ms": 1e3 * floor, "gflops": flops / seconds / 1e9}
            )
    total, floors = (sum(row[key] for row in rows) for key in ("ms", "floor_ms"))
    return {"tokens": T, "ops": rows, "ms": total, "floor_ms": floors, "share_of_floor": floors / total}


def training_step(name: str, precision: str, small: bool) -> tuple[Callable[[], None], float]:
    """Forward, backward, clipping and fused AdamW on random crops; and the model's FLOPs of a step."""
    from camae.model.flops import model_flops
    from camae.training.optimization import clip_gradients
    from camae.training.precision import autocast

    if name == "demo":
        crops, config = 16, preset("ca_mae_vit_ti16", channels=NAMES[:5], **SMALL_CA_MAE)
    else:
        size: dict[str, Any] = {"crop": 64, "depth": 2} if small else {}
        crops, config = 2, preset("ca_mae_vit_s16", channels=NAMES, decoder="small", drop_path=0.0, **size)
    torch.manual_seed(0)
    model, C = CAMAE(config).train(), len(config.channels)
    images = torch.randint(0, 4000, (crops, C, config.crop, config.crop)).to(torch.uint16)
    batch = model.as_batch(images, config.channels)
    noise = torch.rand(crops * C * config.n_patches)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(torch.device("cpu"), precision_names[precision]):
            loss = model(batch, noise)["total"]
        loss.backward()
        clip_gradients(model, 1.0)
        optimizer.step()

    precision_names = {"float32": "fp32", "bfloat16": "bf16"}
    return step, model_flops(config, (C,) * crops, config.mask_ratio).training


def by_op(run: Callable[[], object], rounds: int = ROUNDS) -> list[tuple[str, int, float]]:
    """(op, calls, own milliseconds), largest first; every call of a step at its least over rounds."""
    for _ in range(2):
        run()
    traces = []
    for _ in range(rounds):
        with profile(activities=[ProfilerActivity.CPU]) as found:
            run()
        events = sorted(found.events(), key=lambda e: (e.time_range.start, -e.time_range.end))
        traces.append([(e.name, e.self_cpu_time_total) for e in events])
    usual = Counter(tuple(name for name, _ in trace) for trace in traces).most_common(1)[0][0]
    same = [trace for trace in traces if tuple(name for name, _ in trace) == usual]
    calls, totals = Counter(usual), defaultdict(float)
    for i, name in enumerate(usual):
        totals[name] += min(trace[i][1] for trace in same) / 1e3
    return sorted(((n, calls[n], ms) for n, ms in totals.items()), key=lambda row: -row[2])


def training_row(name: str, precision: str, small: bool) -> dict[str, Any]:
    """A training step by op, beside the floor of its FLOPs."""
    step, flops = training_step(name, precision, small)
    rounds = 3 if small else ROUNDS if name == "demo" else ROUNDS // 2
    ops, whole = by_op(step, rounds), 1e3 * least(step, rounds)
    total, floor = sum(ms for *_, ms in ops), 1e3 * flops / limits(precision)[1]
    rows = [{"op": op, "calls": calls, "ms": ms} for op, calls, ms in ops[:LARGEST]]
    return {
        "ops": rows,
        "calls": sum(calls for _, calls, _ in ops),
        "ops_ms": total,
        "ms": whole,
        "floor_ms": floor,
        "share_of_floor": floor / whole,
    }


def cases(small: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """Name of a row -> what makes it."""
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for precision in DTYPES:
        for form in ("eager", *(("native",) if instructions(precision) else ())):
            found[f"S/16 block, embedding, {form} {precision}"] = lambda f=form, p=precision: block_row(
                f, p, small
            )
        for name in ("demo", "S/16, small decoder"):
            found[f"training step, {name}, {precision}"] = lambda n=name, p=precision: training_row(
                n, p, small
            )
    return found


def main(arguments: Sequence[str]) -> None:
    """Make the rows, print them."""
    small = "--small" in arguments
    words = [word for word in arguments if word != "--small"]
    only = next((word for word in words if not word.endswith(".jsonl")), "")
    out = next((Path(word) for word in words if word.endswith(".jsonl")), None)
    keep_freed_pages()
    for case, make in cases(small).items():
        if only not in case:
            continue
        row = {"op": "profile", "case": case} | make()
        if out is None:
            append_row("profile.jsonl", row, full=not small)
        else:
            with out.open("a") as file:
                file.write(json.dumps(machine("cpu") | row) + "\n")
        print(f"{case}: {row['ms']:.1f} ms, floor {row['floor_ms']:.1f} ({row['share_of_floor']:.0%})")
        for op in row["ops"][:12]:
            rest = f"floor {op['floor_ms']:.2f}" if "floor_ms" in op else f"{op['calls']} calls"
            print(f"  {op['ms']:9.2f} ms  {op['op']} ({rest})", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
