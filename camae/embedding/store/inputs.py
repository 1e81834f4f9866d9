"""State of a screen's input files: size and time of each, by site. Shards keep it, so that stale ones are found."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from camae.dataloader.backends.addresses import split_address
from camae.dataloader.manifest import Manifest
from camae.errors import CamaeError

_UNKNOWN = 0
_THREADS = 8  # network file systems answer one question slowly and many at once quickly


class InputStates:
    """State of the files of every site: a number that changes when one of them is written anew.

    Images and illumination functions count, a Zarr array with all its files, by size and time of the last change.
    A site is looked at once, and again when it is read.
    """

    def __init__(self, manifest: Manifest):
        self.manifest = manifest
        self._states = np.full(len(manifest), _UNKNOWN, np.uint64)
        self._folders: dict[str, str] = {}
        self._walking = threading.Lock()

    def of_rows(self, rows: Iterable[int]) -> list[str]:
        """States of these rows of the manifest, 16 hexadecimal digits each."""
        rows = list(rows)
        unknown = [row for row in rows if self._states[row] == _UNKNOWN]
        if len(unknown) > 1:
            with ThreadPoolExecutor(_THREADS, "camae-states") as pool:
                list(pool.map(self.look, unknown))
        elif unknown:
            self.look(unknown[0])
        return [f"{int(self._states[row]):016x}" for row in rows]

    def look(self, row: int) -> int:
        """The state of a row's files now, which is kept."""
        digest = hashlib.sha256()
        for path in self._paths(row):
            digest.update(self._of_path(path).encode() + b"\n")
        self._states[row] = state = int.from_bytes(digest.digest()[:8], "big") | 1
        return state

    def check_unchanged(self, row: int, before: int) -> None:
        """Raise CamaeError when a row's files are no longer in the state `before`, in which reading them began."""
        if self.look(row) != before:
            raise CamaeError(
                f"{self.manifest.where(row)}: a file of this site was changed while it was read; run it again when "
                "nothing writes the images any more"
            )

    def _paths(self, row: int) -> Iterator[str]:
        for channel in self.manifest.site_channels(row):
            yield split_address(self.manifest.path(row, channel))[0]
            illumination = self.manifest.illumination_path(row, channel)
            if illumination is not None:
                yield illumination

    def _of_path(self, path: str) -> str:
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return "absent"  # reading it says why
        if os.path.isdir(path):
            with self._walking:
                if path not in self._folders:
                    self._folders[path] = _of_folder(path)
                return self._folders[path]
        return f"{status.st_size} {status.st_mtime_ns}"


def _of_folder(path: str) -> str:
    """State of a folder: of every file in it, by name."""
    digest = hashlib.sha256()
    for at, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            file = os.path.join(at, name)
            try:
                status = os.stat(file)
            except OSError:
                continue
            digest.update(f"{os.path.relpath(file, path)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
