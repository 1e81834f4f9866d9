"""On a GPU: DALI `mixed` (decoded on the device) against the native reader and a copy, crops/s on the same files.

Also which decoder nvImageCodec's own log says ran, and the share of the time the device was busy. Not measured where
there is no CUDA device or no DALI: the tests are then skipped.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rows import append_row, device_name

from camae.dataloader.backends.dali import DaliWindows
from camae.dataloader.backends.native import module

sys.path.insert(0, str(Path(__file__).parent / "data"))
import field

HAVE_DALI = bool(importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"))
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(not HAVE_DALI, reason="nvidia-dali-cuda130 is not installed"),
]
BATCH, CROP = 16, 256
_LOG_SCRIPT = """
import sys
from camae.dataloader.backends.dali import DaliWindows
DaliWindows(1, device="cuda").read([sys.argv[1]], [3], [5], 64)
"""


def decoders_in_log(path: str) -> list[str]:
    """Names of the decoders that nvImageCodec's log mentions while one window of `path` is decoded."""
    done = subprocess.run(
        [sys.executable, "-c", _LOG_SCRIPT, path],
        env=os.environ | {"DALI_NVIMGCODEC_LOG_LEVEL": "5"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return sorted(set(re.findall(r"\b(nvtiff|libtiff|opencv|nvjpeg2k|nvjpeg)\w*", done.stderr + done.stdout)))


def crops_per_second(read: Callable[[], object], rounds: int) -> tuple[float, float]:
    """(crops/s, share of the time the device was busy)."""
    read()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        began = time.perf_counter()
        for _ in range(rounds):
            read()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    busy = sum(event.self_device_time_total for event in profile.key_averages()) / 1e6
    return BATCH * rounds / seconds, busy / seconds


@pytest.mark.parametrize(
    "layout", ["none, strips of 8", "LZW, tiles 256", "deflate, tiles 256", "zstd, tiles 256"]
)
def test_reader_mixed_against_native_and_copy(
    layout: str,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture,
) -> None:
    full = bool(request.config.getoption("--full"))
    edge, fields, rounds = (2048, 3, 30) if full else (512, 1, 3)
    paths = field.write_fields(tmp_path_factory.mktemp("gpu"), layout, fields, edge)
    rng = np.random.default_rng(0)
    chosen = [path for f in rng.integers(0, fields, BATCH) for path in paths[f]]
    y, x = rng.integers(0, edge - CROP + 1, (2, BATCH)).repeat(6, axis=1)
    pinned = torch.empty((6 * BATCH, CROP, CROP), dtype=torch.uint16, pin_memory=True)
    n = len(chosen)

    def native_and_copy() -> torch.Tensor:
        assert not module().read_windows(chosen, [-1] * n, y, x, [0] * n, [1] * n, pinned.numpy())
        planes = pinned.to("cuda", non_blocking=True)
        torch.cuda.synchronize()
        return planes

    pipeline = DaliWindows(n, device="cuda", threads=os.cpu_count() or 1)

    def mixed() -> torch.Tensor:
        return pipeline.read(chosen, y, x, CROP)

    assert torch.equal(mixed().cpu(), native_and_copy().cpu())
    row: dict = {
        "op": "read_crops_to_gpu",
        "case": layout,
        "shape": [BATCH, 6, CROP, CROP],
        "image": edge,
        "unit": "crops/s",
    }
    for name, read in {"native_and_copy": native_and_copy, "dali_mixed": mixed}.items():
        speed, busy = crops_per_second(read, rounds)
        row |= {name: round(speed, 1), f"{name}_device_busy": round(busy, 3)}
    row |= {"decoders_in_log": decoders_in_log(chosen[0]), "device": device_name("cuda")}
    with capsys.disabled():
        print("\n" + json.dumps(row))
    append_row("reader.jsonl", row, full=full, device="cuda")
