"""Profile of a training step and of an embedding pass on a GPU: device time by kernel, and the time it was idle.

Shell: `python bench/profile_step.py OUT.jsonl [CASE]`, CASE a part of the names wanted. A row per case: milliseconds a
step, busy share, and the largest kernels with their calls and milliseconds.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import test_embedding
import test_step
import torch
from rows import commit, device_name, versions
from torch.profiler import ProfilerActivity, profile

from camae.inference.accelerate import accelerate

STEPS, LARGEST = 3, 30


def training(case: str) -> Callable[[], object]:
    """A step of the bench's case."""
    return test_step.Step(case, "cuda", test_step.CASES[case][2], True, {})


def embedding(name: str) -> Callable[[], object]:
    """An accelerated pass of the bench's model."""
    config, crops, _ = test_embedding.GPU_ROWS[name]
    model = accelerate(test_embedding.model_of(config, "cuda"), "bfloat16")
    batch = model.as_batch(test_embedding.images_of(crops, 256, "cuda"), test_embedding.CHANNELS)
    return torch.inference_mode()(lambda: model.encode(batch))


CASES: dict[str, Callable[[], Callable[[], object]]] = {
    "train L/16 85 %, 256 crops": lambda: training("L/16 85 %"),
    "train L/8 75 %, 64 crops": lambda: training("L/8 75 %, recomputed"),
    "embed S/16, 64 crops": lambda: embedding("S/16"),
    "embed L/8, 8 crops": lambda: embedding("L/8"),
}


def profiled(run: Callable[[], object]) -> dict[str, object]:
    """Times of a call: wall, busy, and by kernel."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(STEPS):
        run()
    torch.cuda.synchronize()
    wall = (time.perf_counter() - start) / STEPS
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(STEPS):
            run()
        torch.cuda.synchronize()
    events = [e for e in found.key_averages() if e.self_device_time_total > 0]
    events.sort(key=lambda e: -e.self_device_time_total)
    busy = sum(e.self_device_time_total for e in events) / STEPS / 1e6
    kernels = [
        {
            "kernel": e.key[:90],
            "calls": e.count / STEPS,
            "ms": round(e.self_device_time_total / STEPS / 1e3, 3),
        }
        for e in events[:LARGEST]
    ]
    return {"ms": wall * 1e3, "busy": busy / wall, "kernels": kernels}


def main(out: Path, only: str) -> None:
    """Profile every case; write a row each and print the ten largest kernels."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a") as file:
        for case, make in CASES.items():
            if only not in case:
                continue
            row = profiled(make())
            about = {"case": case, "device": device_name("cuda"), "versions": versions(), "commit": commit()}
            file.write(json.dumps(about | row) + "\n")
            file.flush()
            print(f"{case}: {row['ms']:.1f} ms, device busy {row['busy']:.0%}")
            for kernel in row["kernels"][:14]:  # type: ignore[index]
                print(f"  {kernel['ms']:9.3f} ms {kernel['calls']:6.0f} x {kernel['kernel']}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
