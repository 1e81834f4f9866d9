"""One system in a process of its own: reads requests as JSON lines, answers each with one JSON line.

{"case": ..., "full": ...} prepares a case and answers with the names of its calls; {"call": name} runs one and answers
with wall and CPU seconds, the memory that the call added at its peak, and with {"result": true} what it found.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from cases import make
from systems import PACKAGES, SYSTEMS


def memory(field: str) -> float:
    """MB of this process: VmRSS now, VmHWM at its peak since `clear_peak`."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{field}:")[1].split()[0]) / 1e3


def clear_peak() -> None:
    """Give memory that is free back to the system, and start the peak anew."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def main(system: str) -> None:
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a package prints is no answer
    calls: dict[str, Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "case" in request:
            calls = SYSTEMS[system](request["case"].strip(), make(request["case"], request["full"]))
            package = PACKAGES.get(system, system)
            versions = {
                "python": platform.python_version(),
                "numpy": version("numpy"),
                package: version(package),
            }
            answer: dict[str, Any] = {"calls": list(calls), "versions": versions}
        else:
            run, result = calls[request["call"]]
            clear_peak()
            before, start, cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
            found = run()
            answer = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
            answer["peak_MB"] = memory("VmHWM") - before
            if request.get("result"):
                answer["result"] = result(found)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
