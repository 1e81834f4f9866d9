"""Benchmark rows: timing variants side by side, one JSON line each, and comparison with promoted baselines.

A row is refused (the test fails) unless its correctness check passed before any timing. Rows go to
runs/bench/<device>/, rows of `--full` and `--promote` to bench/results/<device>/, where a commit makes them baselines.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from camae.inference.inference_linear import InferenceLinear
from camae.kernels._cpu import processor_instructions
from camae.processors import cpu_model

ROOT = Path(__file__).parents[1]
# GPU_OUT: one folder for all that a measurement on a GPU writes, where the machine keeps nothing.
OUT = os.environ.get("GPU_OUT")
RESULTS = Path(OUT) / "rows" if OUT else ROOT / "bench" / "results"
SCRATCH = Path(OUT) / "scratch" if OUT else ROOT / "runs" / "bench"
PACKAGES = ("torch", "triton", "numpy", "flash-attn")
FLUSH_BYTES = 256 * 2**20  # larger than any L2


@dataclass(frozen=True)
class Times:
    """Seconds: median, 20th and 80th percentile, and how many were taken."""

    median: float
    p20: float
    p80: float
    rounds: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        """From single measurements."""
        ordered = sorted(seconds)

        def at(share: float) -> float:
            return ordered[round(share * (len(ordered) - 1))]

        return cls(statistics.median(ordered), at(0.2), at(0.8), len(ordered))


def append_row(file: str, row: dict[str, Any], *, full: bool, device: str = "cpu") -> None:
    """Append one row as a JSON line, with where and by what it was measured.

    full: beside the promoted rows in `bench/results/`, else in `runs/bench/`.
    """
    place = (RESULTS if full else SCRATCH) / device_name(device) / file
    place.parent.mkdir(parents=True, exist_ok=True)
    about = {"load_average": os.getloadavg()[0]} | machine(device)
    with place.open("a") as stream:
        stream.write(json.dumps(about | row) + "\n")


def difference(with_it: Sequence[float], without: Sequence[float], *, lower: bool = False) -> dict[str, Any]:
    """Means, paired difference and its standard error, and whether that is above two of them.

    lower: of scores where less is better.
    """
    d = np.asarray(with_it) - np.asarray(without)
    error = float(d.std(ddof=1) / np.sqrt(len(d))) if len(d) > 1 else None
    return {
        "with": list(with_it),
        "without": list(without),
        "mean_with": float(np.mean(with_it)),
        "mean_without": float(np.mean(without)),
        "difference": float(d.mean()),
        "se": error,
        "helps": bool(error is not None and (-d.mean() if lower else d.mean()) > 2 * error),
    }


def device_name(device: str) -> str:
    """A folder name for the machine: the GPU's name, or CPU with its number of cores."""
    if device == "cuda":
        return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    return f"cpu-{os.cpu_count()}core"


def machine(device: str) -> dict[str, Any]:
    """Where and by what a row is measured: device, threads, versions, commit; of CPUs model and instruction sets."""
    cpu = {"cpu": {"model": cpu_model(), "instructions": list(processor_instructions())}}
    return {
        "device": device_name(device),
        **(cpu if device == "cpu" else {}),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "commit": commit(),
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide speed; those absent are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@lru_cache
def commit() -> str:
    """The short commit, with + where files differ from it; CAMAE_COMMIT where that is set (a copy without history)."""
    if "CAMAE_COMMIT" in os.environ:
        return os.environ["CAMAE_COMMIT"]
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        found = ""
    return found or "unknown"


def time_cpu(variants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Times]:
    """Wall-clock seconds of a call, as `rounds_on_cpu` takes them."""
    return {name: Times.of(seconds) for name, seconds in rounds_on_cpu(variants, rounds).items()}


def rounds_on_cpu(
    variants: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of a call in every round by `clock`, the wall's by default; variants interleaved, one warm-up each.

    Calls under SHORT are taken several at a time and in more rounds: alone they show the clock and the scheduler.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    calls = {}
    for name, run in variants.items():
        run()
        start = time.perf_counter()
        run()
        calls[name] = max(1, min(50, int(SHORT / max(time.perf_counter() - start, 1e-9))))
    rounds = rounds if max(calls.values()) == 1 else max(rounds, 9)
    for _ in range(rounds):
        for name, run in variants.items():
            start = clock()
            for _ in range(calls[name]):
                run()
            seconds[name].append((clock() - start) / calls[name])
    return seconds


def ratio_of(seconds: dict[str, list[float]], name: str, others: Sequence[str]) -> tuple[str, float]:
    """The fastest of `others` by its median, and the median over rounds of its seconds by those of `name`.

    Both of a round see the same neighbors on a shared machine; their medians alone need not.
    """
    best = min(others, key=lambda other: statistics.median(seconds[other]))
    return best, statistics.median(b / a for a, b in zip(seconds[name], seconds[best], strict=True))


def spread_over(runs: Sequence[dict[str, Times]]) -> dict[str, Times]:
    """Several timings as one: the middle median, the widest percentiles."""
    merged = {}
    for name in runs[0]:
        parts = [run[name] for run in runs]
        median = statistics.median(t.median for t in parts)
        low, high = min(t.p20 for t in parts), max(t.p80 for t in parts)
        merged[name] = Times(median, low, high, sum(t.rounds for t in parts))
    return merged


def time_cuda(variants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Times]:
    """Seconds between CUDA events, variants interleaved, the L2 cache overwritten before each."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in variants}
    for run in variants.values():
        for _ in range(3):
            run()
    for _ in range(rounds):
        for name, run in variants.items():
            flush.zero_()
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            stop.record()
            events[name].append((start, stop))
    torch.cuda.synchronize()
    return {n: Times.of([a.elapsed_time(b) / 1e3 for a, b in pairs]) for n, pairs in events.items()}


@lru_cache
def measured_limits(device: str) -> tuple[float, float]:
    """(bytes/s of a large copy, FLOP/s of the fastest large matrix product in torch) of this machine, now."""
    side = 8192 if device == "cuda" else 1024
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    source = torch.empty(2**28 if device == "cuda" else 2**25, dtype=torch.uint8, device=device)
    target, a = torch.empty_like(source), torch.randn(side, side, device=device).to(dtype)
    timer = time_cuda if device == "cuda" else time_cpu
    runs = {"copy": lambda: target.copy_(source), "product": lambda: a @ a}
    if device == "cpu":
        packed = InferenceLinear(a, None, "float32")
        runs["packed product"] = lambda: packed(a)
    times = timer(runs, 10)
    fastest = min(times[name].p20 for name in times if name != "copy")
    return 2 * source.numel() / times["copy"].p20, 2 * side**3 / fastest


def close(a: torch.Tensor, b: torch.Tensor, relative: float) -> None:
    """Relative L2 distance."""
    error = ((a.double() - b.double()).norm() / b.double().norm()).item()
    assert error < relative, f"relative error {error:.2g}, allowed {relative}"


@dataclass
class Recorder:
    """Measures and writes rows of one session."""

    device: str
    full: bool
    compare: bool
    rounds: int
    promote: bool = False
    compared: int = 0
    without_baseline: int = 0

    def row(
        self,
        op: str,
        case: str,
        *,
        shape: Sequence[int],
        dtype: str,
        ours: dict[str, Callable[[], Any]],
        competitors: dict[str, Callable[[], Any]],
        check: Callable[[], None],
        size_bytes: float,
        flops: float,
        target: str = "",
        benchmark: Any = None,
        more: Callable[[Times], dict[str, Any]] | None = None,
        rounds: int | None = None,
    ) -> dict[str, Any]:
        """Check, time all variants interleaved, write one row for every one of ours, compare where asked.

        more: further entries of a row, from its times. rounds: None: the session's.
        """
        check()
        variants = {**ours, **competitors}
        if benchmark is not None:
            benchmark.pedantic(next(iter(ours.values())), rounds=1, iterations=1, warmup_rounds=0)
        timer = time_cuda if self.device == "cuda" else time_cpu
        rounds = rounds or self.rounds
        times = timer(variants, rounds)
        if self.promote:  # a baseline's spread holds the machine's slower and faster minutes too
            times = spread_over([times, *(time.sleep(1.0) or timer(variants, rounds) for _ in range(2))])
        work = {
            "op": op,
            "case": case,
            "shape": list(shape),
            "dtype": dtype,
            "bytes": size_bytes,
            "flops": flops,
        }
        best = min(competitors, key=lambda n: times[n].median) if competitors else None
        result: dict[str, Any] = {}
        for backend in ours:
            result = work | self.measured(backend, times[backend], size_bytes, flops)
            result |= {
                "competitor": best,
                "competitor_seconds": {n: times[n].median for n in competitors},
                "ratio": times[best].median / times[backend].median if best else None,
                "correct": True,
                "target": target or None,
            } | (more(times[backend]) if more else {})
            if self.compare:
                self.hold_to_baseline(
                    result, lambda run=ours[backend]: timer({"again": run}, self.rounds)["again"]
                )
            self.write(result)
        return result

    def measured(self, backend: str, mine: Times, size_bytes: float, flops: float) -> dict[str, Any]:
        """Where a time was taken, the time, and its place against the floor of bytes and FLOPs."""
        bandwidth, rate = measured_limits(self.device)
        floor = max(size_bytes / bandwidth, flops / rate)
        return {
            "backend": backend,
            **machine(self.device),
            "seconds": {"median": mine.median, "p20": mine.p20, "p80": mine.p80, "rounds": mine.rounds},
            "floor_seconds": floor,
            "fraction_of_floor": floor / mine.median,
            "tflops": flops / mine.median / 1e12,
        }

    def write(self, row: dict[str, Any]) -> None:
        """Append the row to `kernels.jsonl`."""
        append_row("kernels.jsonl", row, full=self.full or self.promote, device=self.device)

    def hold_to_baseline(self, row: dict[str, Any], again: Callable[[], Times]) -> None:
        """Fail on a slowdown beyond the baseline's recorded spread; count rows that have none.

        A slow row is measured again, half a second apart: a neighbor on the machine goes away, a regression stays.
        """
        baseline = find_baseline(row)
        if baseline is None:
            self.without_baseline += 1
            return
        self.compared += 1
        sentence = slowdown(row, baseline)
        for _ in range(AGAIN):
            if sentence is None:
                return
            time.sleep(0.5)
            sentence = slowdown(row | {"seconds": {"median": again().median}}, baseline)
        assert sentence is None, sentence


SHORT, AGAIN = 3e-3, 5  # seconds of a call; repetitions of a row that looks slow
KEY = ("op", "case", "shape", "dtype", "backend", "device", "cpu", "threads", "versions")


def find_baseline(row: dict[str, Any], folder: Path = RESULTS) -> dict[str, Any] | None:
    """The last promoted row of the same case, device and versions."""
    found = None
    for file in sorted((folder / row["device"]).glob("*.jsonl")):
        for line in file.read_text().splitlines():
            candidate = json.loads(line)
            if all(candidate.get(k) == row.get(k) for k in KEY):
                found = candidate
    return found


def slowdown(row: dict[str, Any], baseline: dict[str, Any]) -> str | None:
    """A sentence when the median lies beyond the baseline's p80 by more than its spread, else None."""
    old, new = baseline["seconds"], row["seconds"]["median"]
    limit = old["p80"] + (old["p80"] - old["p20"])
    if new <= limit:
        return None
    return (
        f"{row['op']} [{row['case']}, {row['backend']}] on {row['device']}: {new:.3g} s, "
        f"baseline {old['median']:.3g} s ({baseline['commit']}), beyond its spread (limit {limit:.3g} s)"
    )
