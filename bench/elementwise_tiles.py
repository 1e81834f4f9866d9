"""Tile sweep of the elementwise kernels on a GPU: every configuration timed on a block of the presets, fastest first.

Shell: `python bench/elementwise_tiles.py OUT.jsonl`. A row per kernel, width and configuration, with seconds and the
share of the byte floor; the configuration that ships is marked.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rows import FLUSH_BYTES, commit, device_name, versions
from tiles import PROCESSES, seconds_of

from camae.kernels._device import architecture
from camae.kernels.gelu_split import triton as gelu
from camae.kernels.residual_norm import triton as norm

# (tokens, width): the encoder of L/16 at 85 % with 128 crops, of S/16 embedding 64 crops, a decoder of width 512
SIZES = ((29_568, 1024), (98_368, 384), (98_304, 512))
# Rows and warps that spill no registers at 1,024 columns.
FORWARD_TILES = tuple((r, w) for r in (1, 2, 4, 8) for w in (1, 2, 4, 8) if r <= 2 * w)
BACKWARD_TILES = ((1, 2), (1, 4), (1, 8), (2, 4), (2, 8), (4, 8))
NORM_BACKWARD = tuple(itertools.product(BACKWARD_TILES, (1, 2), (2, 4, 8, 16)))
GELU_FORWARD = tuple(itertools.product((4, 8, 16), (128, 256, 512, 1024), (4, 8)))
GELU_BACKWARD = tuple(itertools.product((4, 8, 16), (128, 256, 512), (4, 8), (64, 256), (1, 2)))
FEW = 64  # tokens that are enough to compile for
Case = tuple[str, tuple[int, int], Any, Callable[[], object], float]


def cases(most: int) -> Iterator[Case]:
    """(kernel, size, configuration, call under it, bytes) of the whole sweep, of at most so many tokens."""
    arch = architecture(torch.device("cuda"))
    for T, D in ((min(tokens, most), width) for tokens, width in SIZES):
        x, y, grad = (torch.randn(T, D, device="cuda") for _ in range(3))
        update, branch = (torch.randn(T, D, device="cuda").bfloat16() for _ in range(2))
        gamma, weight, bias = (torch.randn(D, device="cuda") for _ in range(3))
        shipped = norm.config_for(arch, D)

        def forward(
            x: Any = x, update: Any = update, gamma: Any = gamma, w: Any = weight, b: Any = bias
        ) -> Any:
            return norm.residual_norm(x, update, gamma, None, None, w, b, 1e-6, torch.bfloat16)

        def backward(g: Any = grad, n: Any = branch, y: Any = y, u: Any = update, w: Any = weight) -> Any:
            return norm.residual_norm_backward(g, n, y, u, w, None, None, w, 1e-6)

        for rows, warps in FORWARD_TILES:
            config = replace(shipped, rows=rows, warps=warps)
            yield "residual_norm forward", (T, D), config, forward, T * D * (4 + 2 + 4 + 2)
        for (rows, warps), stages, programs in NORM_BACKWARD:
            config = replace(shipped, own_rows=rows, own_warps=warps, stages=stages, programs=programs)
            yield "residual_norm backward", (T, D), config, backward, T * D * (4 + 2 + 4 + 2 + 4 + 2)
        hidden = 4 * D
        fused, grad_fused = (torch.randn(T, 7 * D, device="cuda").bfloat16() for _ in range(2))
        hidden_bias, slope = (
            torch.randn(hidden, device="cuda"),
            torch.randn(T, hidden, device="cuda").bfloat16(),
        )

        def act(fused: Any = fused, bias: Any = hidden_bias, hidden: int = hidden) -> Any:
            return gelu.forward(fused, bias, hidden)

        def act_backward(s: Any = slope, f: Any = fused, b: Any = hidden_bias, g: Any = grad_fused) -> Any:
            return gelu.backward(s, f, b, g, None)

        for rows, columns, warps in GELU_FORWARD:
            own = replace(gelu.CONFIGS[arch], rows=rows, columns=columns, warps=warps)
            yield "gelu forward", (T, D), own, act, T * hidden * 4
        for rows, columns, warps, parts, stages in GELU_BACKWARD:
            own = replace(
                gelu.CONFIGS[arch],
                own_rows=rows,
                own_columns=columns,
                own_warps=warps,
                parts=parts,
                stages=stages,
            )
            yield "gelu backward", (T, D), own, act_backward, T * hidden * 6


def under(config: Any, call: Callable[[], object]) -> Callable[[], object]:
    """The call with this configuration in the place of the shipped one."""
    arch = architecture(torch.device("cuda"))

    def run() -> object:
        if isinstance(config, gelu.GeluConfig):
            gelu.CONFIGS[arch] = config
        else:
            norm.CONFIGS[arch] = (replace(config, width=norm.WIDE),)
        return call()

    return run


def compile_share(part: int) -> None:
    """Launch once what falls to this process, so that its binary is in Triton's cache."""
    for number, (_, _, config, call, _) in enumerate(cases(FEW)):
        if number % PROCESSES == part:
            try:
                under(config, call)()
            except Exception:  # written down by the process that times it
                continue


def main(out: Path) -> None:
    """Time everything; write a row each; print the fastest of every kernel and size beside the shipped one."""
    arch = architecture(torch.device("cuda"))
    shipped = (gelu.CONFIGS[arch], *norm.CONFIGS[arch])
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        pool.map(compile_share, range(PROCESSES))
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    about = {"device": device_name("cuda"), "versions": versions(), "commit": commit()}
    found: dict[tuple[str, tuple[int, int]], list[tuple[float, bool, Any, float]]] = {}
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a") as file:
        for kernel, size, config, call, size_bytes in cases(1 << 30):
            row = {"kernel": kernel, "size": size, "config": vars(config)}
            try:
                seconds = seconds_of(under(config, call), flush)
                found.setdefault((kernel, size), []).append((seconds, config in shipped, config, size_bytes))
                row |= {
                    "seconds": seconds,
                    "bytes_per_second": size_bytes / seconds,
                    "shipped": config in shipped,
                }
            except Exception as error:  # too much shared memory: a finding
                row |= {"seconds": None, "why": f"{type(error).__name__}: {str(error)[:200]}"}
            file.write(json.dumps(about | row) + "\n")
    for (kernel, size), rows in found.items():
        rows.sort(key=lambda row: row[0])
        own = next((seconds for seconds, is_shipped, *_ in rows if is_shipped), float("nan"))
        print(f"{kernel} {size}: shipped {own * 1e6:.0f} us", flush=True)
        for seconds, _, config, size_bytes in rows[:4]:
            print(
                f"    {seconds * 1e6:.0f} us {size_bytes / seconds / 1e12:.2f} TB/s {list(vars(config).values())}"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
