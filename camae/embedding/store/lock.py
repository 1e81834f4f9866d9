"""File lock of an output folder: an advisory lock that the system drops when its holder dies."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from camae.errors import CamaeError

_RANK = re.compile(r"\.lock\.rank\d+of(\d+)$")


@contextmanager
def writing(folder: Path, rank: int = 0, world: int = 1) -> Iterator[None]:
    """Hold `folder` for writing as one of `world` processes.

    A single process excludes all others; ranks of one world share the folder, and each rank runs once.
    Raises CamaeError that names the holder while another process has it. A lock left by a dead process is free.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if world == 1:
            stack.enter_context(_held(folder, ".lock", exclusive=True))
        else:
            stack.enter_context(_held(folder, ".lock", exclusive=False))
            stack.enter_context(_held(folder, f".lock.rank{rank}of{world}", exclusive=True))
            _refuse_other_worlds(folder, world)
        yield


@contextmanager
def merging(folder: Path) -> Iterator[None]:
    """Wait for, then hold, the right to put the shards together."""
    with open(folder / ".lock.merge", "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _held(folder: Path, name: str, exclusive: bool) -> Iterator[None]:
    with open(folder / name, "a+", encoding="utf-8") as file:
        _take(file, folder, exclusive)
        # Only for the sentence another process says: the lock itself is the system's.
        file.seek(0)
        file.truncate()
        file.write(json.dumps({"pid": os.getpid(), "host": platform.node()}))
        file.flush()
        yield


def _take(file: IO[str], folder: Path, exclusive: bool) -> None:
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise CamaeError(
                f"{folder}: its file system cannot lock files ({error.strerror}), so that two processes could write "
                "one output; choose a folder on another"
            ) from None
        raise CamaeError(
            f"{folder} is being written by {_holder(file)}; wait for it, or choose another folder"
        ) from None


def _holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        about = json.loads(file.read())
    except json.JSONDecodeError:
        return "another process"
    return f"process {about['pid']} on {about['host']}"


def _refuse_other_worlds(folder: Path, world: int) -> None:
    """Ranks of 4 and ranks of 8 would do the same shards twice."""
    for path in sorted(folder.glob(".lock.rank*of*")):
        match = _RANK.search(path.name)
        if match is None or int(match[1]) == world:
            continue
        with open(path, "a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                raise CamaeError(
                    f"{folder} is being written by {_holder(file)} as one of {match[1]} processes, and this is one of "
                    f"{world}; wait for it, or choose another folder"
                ) from None
