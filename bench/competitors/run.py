"""Competitors beside camae in one run: each in a process of its own, calls interleaved, one JSON row for each call.

    python3.12 -m venv ENV && ENV/bin/pip install -r bench/competitors/requirements-scverse.txt
    python bench/competitors/run.py --scverse ENV/bin/python           # small
    python bench/competitors/run.py --scverse ENV/bin/python --full    # rows into bench/results/<machine>/

On one thread (OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1) ratios are judged by CPU seconds, which other work on the machine
hardly changes; on more threads by wall seconds, which need a quiet machine.
Without --scverse the systems of that environment are left out, and the run says so.
Results that should be the same are compared before a row is written: recall to 1e-3, mean AP to 1e-4, neighbors after
one method to 1e-2.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
from cases import FULL, SMALL  # noqa: E402
from rows import RESULTS, SCRATCH, Times, commit, device_name  # noqa: E402

HERE = Path(__file__).parent
SCVERSE = ("mantispy", "harmonypy")
OWN = ("camae", "efaar", "copairs", "pycytominer")
SAME = {"recall": 1e-3, "mean_ap": 1e-4}
SAME_METHOD = (
    ("camae tvn_ando", "mantispy"),
    ("camae tvn", "efaar"),
)  # neighbors to 1e-2: rounding decides few
SLOW = 5.0  # seconds: calls that take longer are timed fewer times
# Case -> (call of ours, rival, how many times faster ours is to be); the product is to be at most 3 times faster.
TARGETS = {
    "tvn": [("camae tvn_ando", "mantispy", 5.0), ("camae tvn", "mantispy", 5.0)],
    "recall 3,000": [("camae", "mantispy", 3.0), ("camae", "the product", 1 / 3)],
    "recall 10,000": [("camae", "mantispy", 3.0)],
}


class Process:
    """A system that answers requests (`serve.py`)."""

    def __init__(self, system: str, python: str) -> None:
        command = [python, str(HERE / "serve.py"), system]
        self.system = system
        self.pipe = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def ask(self, **request: object) -> dict[str, Any]:
        assert self.pipe.stdin is not None
        assert self.pipe.stdout is not None
        self.pipe.stdin.write(json.dumps(request) + "\n")
        self.pipe.stdin.flush()
        line = self.pipe.stdout.readline()
        if not line:
            assert self.pipe.stderr is not None
            raise SystemExit(f"{self.system} stopped: {self.pipe.stderr.read()[-2000:]}")
        return json.loads(line)

    def close(self) -> None:
        assert self.pipe.stdin is not None
        self.pipe.stdin.close()
        self.pipe.wait()


def compare(case: str, pythons: dict[str, str], full: bool, rounds: int) -> list[dict[str, Any]]:
    """Rows of one case: all systems prepared, one call of each as a warm-up, then their calls in turn."""
    processes = [Process(system, python) for system, python in pythons.items()]
    calls: dict[str, Process] = {}
    versions = {}
    for process in processes:
        said = process.ask(case=case, full=full)
        calls |= dict.fromkeys(said["calls"], process)
        versions |= dict.fromkeys(said["calls"], said["versions"])
    first = {name: process.ask(call=name, result=True) for name, process in calls.items()}
    check_same(case, {name: answer["result"] for name, answer in first.items()})
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in calls}
    for k in range(rounds):
        for name, process in calls.items():
            if first[name]["seconds"] < SLOW or k == 0:
                taken[name].append(process.ask(call=name))
    for process in processes:
        process.close()
    return [
        row_of(case, name, taken, first[name]["result"], versions[name], (FULL if full else SMALL)[case])
        for name in calls
    ]


def check_same(case: str, results: dict[str, dict[str, float]]) -> None:
    """Stop where two systems answer the same question otherwise."""
    for measure, tolerance in SAME.items():
        found = {name: result[measure] for name, result in results.items() if measure in result}
        if found and max(found.values()) - min(found.values()) > tolerance:
            raise SystemExit(f"{case}: systems differ in {measure}: {found}")
    for ours, theirs in SAME_METHOD:
        if {ours, theirs} <= set(results):
            for measure, value in results[ours].items():
                if abs(value - results[theirs][measure]) > 1e-2:
                    raise SystemExit(f"{case}: {ours} and {theirs} differ in {measure}: {results}")


def row_of(
    case: str,
    name: str,
    taken: dict[str, list[dict[str, Any]]],
    result: dict[str, float],
    versions: dict[str, str],
    shape: tuple[int, int],
) -> dict[str, Any]:
    """One row: where and by what, times, memory, result, and for ours the ratios asked for."""
    times = {other: Times.of([t["seconds"] for t in all_]) for other, all_ in taken.items()}
    mine, answers = times[name], taken[name]
    judged = "cpu_ratio" if os.environ.get("OMP_NUM_THREADS") == "1" else "ratio"
    cpu = {other: Times.of([t["cpu_seconds"] for t in all_]).median for other, all_ in taken.items()}
    ratios = [
        {
            "to": rival,
            "ratio": times[rival].median / mine.median,
            "cpu_ratio": cpu[rival] / cpu[name],
            "target": least,
        }
        for ours, rival, least in TARGETS.get(case, [])
        if ours == name and rival in times
    ]
    return {
        "op": f"competitors: {case}",
        "case": name,
        "shape": list(shape),
        "dtype": "float32",
        "backend": "numpy" if name.startswith("camae") else name,
        "device": device_name("cpu"),
        "cpu": cpu_name(),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "versions": versions,
        "commit": commit(),
        "seconds": {"median": mine.median, "p20": mine.p20, "p80": mine.p80, "rounds": mine.rounds},
        "cpu_seconds": cpu[name],
        "peak_MB": round(max(a["peak_MB"] for a in answers), 1),
        "load_average": round(os.getloadavg()[0], 2),
        "result": result,
        "ratios": [r | {"met": r[judged] >= r["target"], "judged_by": judged} for r in ratios],
        "correct": True,
    }


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scverse", help="python of the environment of requirements-scverse.txt")
    parser.add_argument("--full", action="store_true", help="sizes of the rows that are committed")
    parser.add_argument("--case", action="append", choices=list(FULL), help="only this case; may be repeated")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    pythons = dict.fromkeys(OWN, sys.executable)
    if options.scverse:
        pythons |= dict.fromkeys(SCVERSE, options.scverse)
    else:
        print(f"left out, without --scverse: {', '.join(SCVERSE)}")
    place = (RESULTS if options.full else SCRATCH) / device_name("cpu") / "competitors.jsonl"
    place.parent.mkdir(parents=True, exist_ok=True)
    for case in options.case or FULL:
        for row in compare(case, pythons, options.full, options.rounds):
            with place.open("a") as file:
                file.write(json.dumps(row) + "\n")
            said = ", ".join(
                f"{r['ratio']:.2f} x {r['to']} (CPU {r['cpu_ratio']:.2f}, target {r['target']:.2f})"
                for r in row["ratios"]
            )
            print(
                f"{case:18} {row['case']:15} {row['seconds']['median']:8.3f} s {row['peak_MB']:8.1f} MB "
                f"{row['result']} {said}",
                flush=True,
            )


if __name__ == "__main__":
    main()
