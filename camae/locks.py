"""File locks of output folders: advisory locks that the system drops when their holder dies."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from camae.errors import CamaeError
from camae.files import output_errors

_LOCK = ".lock"
_RANK = re.compile(r"\.lock\.rank\d+of(\d+)$")


@contextmanager
def writing(folder: Path, rank: int = 0, world: int = 1, *, required: bool = True) -> Iterator[None]:
    """Hold `folder` for writing as one of `world` processes.

    A single process excludes all others; ranks of one world share the folder, and each rank runs once. A folder
    that nothing was written into is taken away again.
    required: False only warns on a file system that cannot lock.
    Raises CamaeError that names the holder while another process has it, and for a folder that cannot be made. A lock
    left by a dead process is free.
    """
    made = not folder.exists()
    _make(folder)
    try:
        with ExitStack() as stack:
            if world == 1:
                stack.enter_context(_held(folder, _LOCK, True, required))
            else:
                stack.enter_context(_held(folder, _LOCK, False, required))
                stack.enter_context(_held(folder, f"{_LOCK}.rank{rank}of{world}", True, required))
                _refuse_other_worlds(folder, world)
            yield
    finally:
        _tidy(folder, made)


@contextmanager
def merging(folder: Path) -> Iterator[None]:
    """Wait for, then hold, the right to put the shards together."""
    with open(folder / ".lock.merge", "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(folder: Path) -> None:
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def _held(folder: Path, name: str, exclusive: bool, required: bool) -> Iterator[None]:
    with _taken(folder, name, exclusive, required) as file:
        # Only for the sentence another process says: the lock itself is the system's. A full disk costs the name.
        with suppress(OSError):
            file.seek(0)
            file.truncate()
            file.write(json.dumps({"pid": os.getpid(), "host": platform.node()}))
            file.flush()
        yield


def _taken(folder: Path, name: str, exclusive: bool, required: bool) -> IO[str]:
    """The lock file, open and locked; again where its last holder removed it meanwhile, since that locks nothing."""
    path = folder / name
    while True:
        with output_errors(path):
            folder.mkdir(parents=True, exist_ok=True)
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
        try:
            _take(file, folder, exclusive, required)
            if _is_file_of(path, file):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _is_file_of(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _take(file: IO[str], folder: Path, exclusive: bool, required: bool) -> None:
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise CamaeError(
                f"{folder} is being written by {_holder(file)}; wait for it, or choose another folder"
            ) from None
        sentence = (
            f"{folder}: its file system cannot lock files ({error.strerror}), so that two processes could write "
            "one output"
        )
        if required:
            raise CamaeError(f"{sentence}; choose a folder on another") from None
        warnings.warn(f"{sentence}; take care that no two do", stacklevel=2)


def _holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        about = json.loads(file.read())
        return f"process {about['pid']} on {about['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _refuse_other_worlds(folder: Path, world: int) -> None:
    """Ranks of 4 and ranks of 8 would do the same work twice."""
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


def _tidy(folder: Path, made: bool) -> None:
    """Remove the lock files of a folder that holds nothing else and that nobody holds; and the folder, if `made`."""
    with suppress(OSError):
        names = os.listdir(folder)
        if not names or any(not name.startswith(_LOCK) for name in names):
            return
        with open(folder / _LOCK, "a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for name in sorted(names, reverse=True):
                os.unlink(folder / name)
            if made:
                os.rmdir(folder)
