"""Download plan of a screen: its files, their sizes, and the commands that fetch those on S3."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from dataclasses import dataclass

import pandas as pd

from camae.dataloader.backends.addresses import split_address
from camae.dataloader.manifest import Manifest


@dataclass(frozen=True)
class Plan:
    """Download plan.

    table:        one row per file: path, where ("disk", "s3", "missing"), bytes (0 where unknown).
    disk_bytes:   size of the files on disk.
    remote_bytes: estimate for S3: the mean size of the files on disk times their number, 0 where none is on disk.
    commands:     shell commands that copy the files on S3.
    """

    table: pd.DataFrame
    disk_bytes: int
    remote_bytes: int
    commands: list[str]

    def __str__(self) -> str:
        counts = Counter(self.table["where"])
        parts = [f"{counts['disk']} files on disk, {self.disk_bytes / 1e9:.3f} GB"]
        if counts["s3"]:
            parts.append(f"{counts['s3']} on S3, about {self.remote_bytes / 1e9:.3f} GB")
        if counts["missing"]:
            parts.append(f"{counts['missing']} missing")
        return "; ".join(parts)


def plan(manifest: Manifest, destination: str = ".") -> Plan:
    """Download plan of a manifest's files (for some sites only, use Manifest.select first).

    destination: local folder that the copy commands write to; the Gallery's folder layout is kept below it.
    """
    files = dict.fromkeys(
        split_address(manifest.path(row, channel))[0]
        for row in range(len(manifest))
        for channel in manifest.site_channels(row)
    )
    rows = [(path, *_place(path)) for path in files]
    table = pd.DataFrame(rows, columns=["path", "where", "bytes"])
    here = table[table["where"] == "disk"]
    remote = table[table["where"] == "s3"]
    mean = float(here["bytes"].mean()) if len(here) else 0.0
    return Plan(
        table,
        int(here["bytes"].sum()),
        int(mean * len(remote)),
        _commands(remote["path"].tolist(), destination),
    )


def _place(path: str) -> tuple[str, int]:
    if path.startswith("s3://"):
        return "s3", 0
    if os.path.isdir(path):
        sizes = (os.path.getsize(os.path.join(at, f)) for at, _, names in os.walk(path) for f in names)
        return "disk", sum(sizes)
    return ("disk", os.path.getsize(path)) if os.path.exists(path) else ("missing", 0)


def _commands(addresses: list[str], destination: str) -> list[str]:
    """One `aws s3 cp` per folder that fetches exactly the named files."""
    folders: dict[str, list[str]] = {}
    for address in addresses:
        folder, _, file = address.rpartition("/")
        folders.setdefault(folder, []).append(file)
    commands = []
    for folder, files in folders.items():
        local = os.path.join(destination, folder.removeprefix("s3://").partition("/")[2])
        chosen = " ".join(f"--include {shlex.quote(file)}" for file in files)
        commands.append(
            f"aws s3 cp --no-sign-request --recursive {shlex.quote(folder + '/')} {shlex.quote(local)} "
            f"--exclude '*' {chosen}"
        )
    return commands
