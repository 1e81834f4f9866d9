"""Usable CPUs: how many processors this process may keep busy, by affinity and control groups (containers, SLURM)."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator, MutableMapping
from contextlib import suppress
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_CPUINFO = Path("/proc/cpuinfo")
THREADS = "OMP_NUM_THREADS"


def usable_cpus() -> int:
    """CPUs that this process can keep busy, at least 1.

    The least of: the machine's, those the process is bound to, and the quotas of the control groups above it. A quota
    of 1.5 CPUs counts as 2: the second is idle for half of the time, which costs less than half of the first.
    """
    found = [os.cpu_count() or 1, *_bound(), *_quotas()]
    return max(1, min(found))


def limit_threads(environment: MutableMapping[str, str]) -> None:
    """Keep libraries that are imported later to the usable CPUs, where neither the user nor affinity says so.

    OpenMP, and with it torch and NumPy, counts the CPUs a process is bound to and knows nothing of quotas: in a
    container of 2 CPUs on a machine of 64 it would start 64 threads that stop one another.
    """
    cpus = usable_cpus()
    if THREADS not in environment and cpus < min([os.cpu_count() or 1, *_bound()]):
        environment[THREADS] = str(cpus)


def cpu_model() -> str:
    """Model name of the processor as the system gives it, "unknown" where it does not."""
    with suppress(OSError):
        for line in _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def _bound() -> Iterator[int]:
    if hasattr(os, "sched_getaffinity"):
        yield len(os.sched_getaffinity(0))


def _quotas() -> Iterator[int]:
    """CPUs that each control group above this process allows."""
    with suppress(OSError, ValueError):
        for line in _OWN_CGROUPS.read_text(encoding="ascii").splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers == "":
                root = _CGROUPS
            elif "cpu" in controllers.split(","):
                root = _CGROUPS / "cpu"
            else:
                continue
            folder = root / name.lstrip("/")
            while True:
                yield from _quota(folder)
                if folder == root or root not in folder.parents:
                    break
                folder = folder.parent


def _quota(folder: Path) -> Iterator[int]:
    """The quota of one group: cpu.max "quota period", or cpu.cfs_quota_us and cpu.cfs_period_us of version 1."""
    with suppress(OSError, ValueError):
        quota, period = (int(x) for x in (folder / "cpu.max").read_text().split())  # "max" is a ValueError
        yield math.ceil(quota / period)
    with suppress(OSError, ValueError):
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        if quota > 0:  # -1: none
            yield math.ceil(quota / int((folder / "cpu.cfs_period_us").read_text()))
