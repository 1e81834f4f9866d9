"""Free memory: what this process can still take, by the system, its control group and its limits."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_UNKNOWN = 4 * 2**30  # where the system says nothing
_UNLIMITED = 2**60  # numbers above it stand for no limit
_CGROUPS = Path("/sys/fs/cgroup")


def free_memory() -> int:
    """Bytes of host memory that this process can still take; 4 GiB where the system does not say.

    The least of: what Linux calls available, what the control groups of the process (containers, SLURM) leave, and what
    its limit of address space leaves.
    """
    found = [*_available(), *_left_in_cgroups(), *_left_in_address_space()]
    return max(0, min(found, default=_UNKNOWN))


def _available() -> Iterator[int]:
    with suppress(OSError, ValueError), open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024
                return


def _left_in_cgroups() -> Iterator[int]:
    """What each control group above this process leaves; pages of files count as free, the system drops them."""
    with suppress(OSError, ValueError):
        lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
        for line in lines:
            _, controllers, name = line.split(":", 2)
            if controllers == "":
                root, files = _CGROUPS, ("memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                root = _CGROUPS / "memory"
                files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            else:
                continue
            folder = root / name.lstrip("/")
            while True:
                yield from _left(folder, *files)
                if folder == root or root not in folder.parents:
                    break
                folder = folder.parent


def _left(folder: Path, limit_file: str, used_file: str, cache: str) -> Iterator[int]:
    with suppress(OSError, ValueError):
        limit = int((folder / limit_file).read_text())  # "max" is a ValueError
        if limit >= _UNLIMITED:
            return
        used = int((folder / used_file).read_text())
        pairs = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        yield limit - used + int(dict(pairs).get(cache, 0))


def _left_in_address_space() -> Iterator[int]:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY or limit >= _UNLIMITED:
        return
    with suppress(OSError, ValueError):
        yield limit - int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
