"""Tile sweep of attention's kernels on a GPU: every tile timed on the shapes of the presets, the fastest first.

Shell: `python bench/tiles.py OUT.jsonl`. A row per kernel, shape and tile, with its seconds or why it did not run; the
tiles that the kernels ship with are marked. Compiled by many processes into Triton's cache, timed by one.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rows import FLUSH_BYTES, commit, device_name, versions

from camae.kernels.varlen_attention.head_norm_triton import Norms, normed_keys
from camae.kernels.varlen_attention.problem import Problem, separate_buffers
from camae.kernels.varlen_attention.tile_table import AttentionConfig, Tile, config_for
from camae.kernels.varlen_attention.triton import _forward, _key_gradient, _query_gradient

# (name, lengths of queries and keys, heads, head dim, norms of q and k inside, backward too)
SHAPES = (
    ("encoder L/8 75 %, 1537", ((1537, 1537),) * 16, 16, 64, True, True),
    ("encoder L/16 85 %, 231", ((231, 231),) * 128, 16, 64, True, True),
    ("encoder S/16 embedding, 1537", ((1537, 1537),) * 32, 6, 64, True, False),
    ("decoder within a channel, 256", ((256, 256),) * 192, 16, 32, False, True),
    ("decoder cross, 1536 x 384", ((1536, 384),) * 64, 8, 32, False, True),
)
STAGES = (2, 3, 4)
SWEEP = {
    "forward": (
        (64, 32, 4),
        (64, 64, 4),
        (64, 128, 4),
        (128, 32, 4),
        (128, 64, 4),
        (128, 64, 8),
        (128, 128, 8),
    ),
    "queries": ((64, 32, 4), (64, 64, 4), (64, 128, 4), (128, 32, 4), (128, 64, 4), (128, 64, 8)),
    "keys": ((32, 64, 4), (64, 64, 4), (128, 64, 4), (32, 128, 4), (64, 128, 8), (128, 64, 8)),
    "atomic": ((32, 64, 4), (64, 64, 4), (32, 64, 8), (64, 64, 8), (32, 128, 8), (64, 128, 8)),
}
ROUNDS, PROCESSES = 10, 14


def problem_of(
    lengths: tuple[tuple[int, int], ...], heads: int, d: int, normed: bool
) -> tuple[Problem, torch.Tensor]:
    """Random attention over a packed batch, and a gradient of its output."""
    g = torch.Generator("cuda").manual_seed(0)
    rows = [sum(pair[i] for pair in lengths) for i in (0, 1, 1, 0)]
    q, k, v, grad = (torch.randn(n, heads, d, device="cuda", dtype=torch.bfloat16, generator=g) for n in rows)
    cu = [torch.tensor([0, *(pair[i] for pair in lengths)]).cumsum(0).to("cuda", torch.int32) for i in (0, 1)]
    maxima = [max(pair[i] for pair in lengths) for i in (0, 1)]
    norms = Norms(*(torch.rand(d, device="cuda", generator=g) for _ in range(3)), 1e-6) if normed else None
    rstd_HS = None
    if normed:
        k, rstd_HS = normed_keys(k, 1e-6)
    return Problem(q, k, v, *cu, *maxima, d**-0.5, norms, rstd_HS), grad


def call_of(problem: Problem, grad_THd: torch.Tensor, kernel: str, tile: Tile) -> Callable[[], object]:
    """Launch of one kernel, its inputs computed by the shipped configuration."""
    own = problem._replace(tiles=AttentionConfig(tile, tile, tile))
    if kernel == "forward":
        return lambda: _forward(own)
    out_THd, lse_HT = _forward(problem)
    delta_HT, buffers = (
        torch.empty_like(lse_HT),
        separate_buffers(problem.q_THd, problem.k_SHd, problem.v_SHd),
    )
    folded_THd, _ = _query_gradient(problem, grad_THd, out_THd, lse_HT, delta_HT, buffers.grad_q)
    if kernel == "queries":
        return lambda: _query_gradient(own, grad_THd, out_THd, lse_HT, delta_HT, buffers.grad_q)
    inputs = (own, grad_THd, folded_THd, lse_HT, delta_HT, *buffers[1:])
    if kernel == "keys":
        return lambda: _key_gradient(*inputs)
    dq_THd = torch.zeros(problem.q_THd.shape, dtype=torch.float32, device="cuda")
    return lambda: _key_gradient(*inputs, dq_THd)


def work() -> list[tuple[int, str, Tile]]:
    """All of the sweep: number of the shape, kernel, tile. TILES_KERNELS: kernels to sweep, by commas; default all."""
    chosen = os.environ.get("TILES_KERNELS", ",".join(SWEEP)).split(",")
    return [
        (i, kernel, Tile(*sizes[0], sizes[1]))
        for i, (*_, backward) in enumerate(SHAPES)
        for kernel, tiles in SWEEP.items()
        if (backward or kernel == "forward") and kernel in chosen
        for sizes in itertools.product(tiles, STAGES)
    ]


def compile_share(part: int) -> None:
    """Launch once what falls to this process, so that its binary is in Triton's cache."""
    binaries: dict[tuple[object, ...], tuple[int, str, Tile]] = {}
    for i, kernel, tile in work():  # shapes of one head dim share binaries
        binaries.setdefault((*SHAPES[i][3:5], kernel, tile), (i, kernel, tile))
    for i, kernel, tile in list(binaries.values())[part::PROCESSES]:
        _, lengths, heads, d, normed, _ = SHAPES[i]
        try:
            call_of(*problem_of(lengths, heads, d, normed), kernel, tile)()
        except Exception:  # written down by the process that times it
            continue


def seconds_of(call: Callable[[], object], flush: torch.Tensor) -> float:
    """Median seconds of a call between CUDA events, the L2 cache overwritten before each."""
    call()
    events = []
    for _ in range(ROUNDS):
        flush.zero_()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        stop.record()
        events.append((start, stop))
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in events) / 1e3


def main(out: Path) -> None:
    """Time everything; write a row each; print the fastest of every kernel and shape beside the shipped tile."""
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        pool.map(compile_share, range(PROCESSES))
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    about = {"device": device_name("cuda"), "versions": versions(), "commit": commit()}
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a") as file:
        for (i, kernel), group in itertools.groupby(work(), key=lambda entry: entry[:2]):
            name, lengths, heads, d, normed, _ = SHAPES[i]
            problem, grad_THd = problem_of(lengths, heads, d, normed)
            shipped = getattr(config_for(torch.device("cuda"), d, torch.bfloat16, normed), kernel)
            found: list[tuple[float, Tile]] = []
            for _, _, tile in group:
                row = {"shape": name, "kernel": kernel, "tile": list(vars(tile).values())}
                try:
                    seconds = seconds_of(call_of(problem, grad_THd, kernel, tile), flush)
                    found.append((seconds, tile))
                    row |= {"seconds": seconds, "shipped": tile == shipped}
                except Exception as error:  # too much shared memory: a finding
                    row |= {"seconds": None, "why": f"{type(error).__name__}: {str(error)[:200]}"}
                file.write(json.dumps(about | row) + "\n")
            found.sort(key=lambda entry: entry[0])
            own = next((s for s, tile in found if tile == shipped), float("nan"))
            products = {"forward": 2, "queries": 3, "keys": 4, "atomic": 5}[kernel]
            flops = sum(2 * n * m for n, m in lengths) * heads * d * products
            best = "; ".join(
                f"{t.queries}x{t.keys}w{t.warps}s{t.stages} {s * 1e6:.0f}us" for s, t in found[:4]
            )
            print(
                f"{name} {kernel}: shipped {shipped.queries}x{shipped.keys}w{shipped.warps}s{shipped.stages} "
                f"{own * 1e6:.0f}us; {best}; {flops / found[0][0] / 1e12:.0f} TFLOP/s",
                flush=True,
            )


if __name__ == "__main__":
    os.environ.setdefault("TRITON_CACHE_DIR", "/tmp/triton-tiles")
    main(Path(sys.argv[1]))
