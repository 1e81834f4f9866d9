"""Maps on a GPU through CuPy beside NumPy on the same machine: order statistics of cosines, recall, TVN.

Floors: for n rows of D columns one symmetric product, n^2 D FLOP in fp32. Not measured without a CUDA device.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from rows import Times, append_row, device_name

from camae import maps
from camae.kernels.arrays.cosine_tails import order_statistics

cupy = pytest.importorskip("cupy", reason="needs CuPy")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; not measured without one"),
]
ROUNDS = 3


def unit_rows(n: int, d: int) -> np.ndarray:
    x_ND = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)
    return x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)


def seconds(call: Callable[[], Any]) -> Times:
    """Wall seconds of a call that ends when the device has; the first one, which compiles, is not counted."""
    taken = []
    for k in range(ROUNDS + 1):
        cupy.cuda.Device().synchronize()
        start = time.perf_counter()
        call()
        cupy.cuda.Device().synchronize()
        if k:
            taken.append(time.perf_counter() - start)
    return Times.of(taken)


def record(
    op: str, shape: tuple[int, ...], flops: float, ours: Times, numpy: float | None, target: str
) -> None:
    row = {
        "op": op,
        "shape": list(shape),
        "backend": "cupy",
        "dtype": "float32",
        "device": device_name("cuda"),
        "seconds": {"median": ours.median, "p20": ours.p20, "p80": ours.p80, "rounds": ours.rounds},
        "tflops": flops / ours.median / 1e12,
        "competitor": None if numpy is None else "numpy on the same machine, once",
        "competitor_seconds": numpy,
        "ratio": None if numpy is None else numpy / ours.median,
        "target": target,
    }
    print(f"\n{op} {shape}: {ours.median:.3f} s, {row['tflops']:.1f} TFLOP/s, ratio {row['ratio']}")
    append_row("maps.jsonl", row, full=True, device="cuda")


@pytest.mark.parametrize(("n", "d"), [(20_000, 1024), (136_000, 1024)])
def test_cosine_tails(n: int, d: int) -> None:
    host_ND = unit_rows(n, d)
    x_ND = cupy.asarray(host_ND)
    few = 3000
    total = few * (few - 1) // 2
    expected = np.sort((host_ND[:few].astype(np.float64) @ host_ND[:few].T)[np.triu_indices(few, 1)])
    ranks = [total // 20, total - total // 20]
    # fp32 sums of 1024 products of unit rows.
    np.testing.assert_allclose(order_statistics(x_ND[:few], ranks), expected[ranks], atol=1e-6)
    pairs = n * (n - 1) // 2
    tails = [pairs // 20, pairs - pairs // 20]
    numpy = None
    if n <= 20_000:
        start = time.perf_counter()
        order_statistics(host_ND, tails)
        numpy = time.perf_counter() - start
    found = seconds(lambda: order_statistics(x_ND, tails))
    record("cosine_tails", (n, d), float(n) * n * d, found, numpy, "136,000 x 1024 in 1 s")


def test_tvn() -> None:
    n, d = 50_000, 1024
    host_ND = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)
    batch, control = np.repeat([f"b{i}" for i in range(8)], n // 8), np.arange(n) % 10 == 0
    x_ND = cupy.asarray(host_ND)
    small = slice(None, None, 20)
    names = np.repeat([f"b{i}" for i in range(8)], n // 160 + 1)[: len(host_ND[small])]
    controls = np.arange(len(names)) % 3 == 0
    ours, theirs = (maps.align(v[small, :64], "tvn", names, controls) for v in (x_ND, host_ND))
    np.testing.assert_allclose(abs(ours.get()), abs(theirs), atol=5e-3)  # axes have no sign; fp32
    start = time.perf_counter()
    maps.align(host_ND, "tvn", batch, control)
    numpy = time.perf_counter() - start
    found = seconds(lambda: maps.align(x_ND, "tvn", batch, control))
    record("tvn", (n, d), 2.0 * n * d * d, found, numpy, "")
