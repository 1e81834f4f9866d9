"""Download plan of a screen: its files, their sizes, and the commands that fetch those on S3."""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from dataclasses import dataclass

import pandas as pd

from camae.dataloader.backends.addresses import split_address
from camae.dataloader.datasets import jump_lite
from camae.dataloader.manifest import Manifest
from camae.dataloader.read_pixels import checked_reader

# Projects of the Cell Painting Gallery are folders of this public bucket.
_BUCKET = "s3://cellpainting-gallery"
_PROJECT = re.compile(r"cpg\d{4}(?:-[\w-]+)?")
# Arrays of a Zarr store that are copied one by one; more are fetched by plates, in one command that lists the store.
_SINGLY = 100


@dataclass(frozen=True)
class Plan:
    """Download plan.

    table:        one row per file: path, where ("disk", "s3", "missing"), bytes (0 where unknown). A file of the Cell
                  Painting Gallery that is not here has its address on S3 as path.
    disk_bytes:   size of the files on disk.
    remote_bytes: estimate for S3: the published mean size of JUMP-lite's sites, the mean size of the files on disk for
                  all others (0 where none is on disk), each times their number.
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
            size = f"about {self.remote_bytes / 1e9:.3f} GB" if self.remote_bytes else "of unknown size"
            parts.append(f"{counts['s3']} on S3, {size}")
        if counts["missing"]:
            parts.append(f"{counts['missing']} missing")
        return "; ".join(parts)


def plan(manifest: Manifest, destination: str = ".", reader: str | None = None) -> Plan:
    """Download plan of a manifest's files (for some sites only, use Manifest.select first).

    Read the manifest with incomplete="keep" to plan for files that are not here yet.
    destination: local folder that the copy commands write to; the Gallery's folder layout is kept below it.
    reader: image back-end as in `check` and `pack`; checked, no pixel is read.
    """
    checked_reader(reader)
    files = dict.fromkeys(
        split_address(manifest.path(row, channel))[0]
        for row in range(len(manifest))
        for channel in manifest.site_channels(row)
    )
    rows = [_place(path) for path in files]
    table = pd.DataFrame(rows, columns=["path", "where", "bytes"])
    here = table[table["where"] == "disk"]
    remote = table[table["where"] == "s3"]
    mean = float(here["bytes"].mean()) if len(here) else 0.0
    estimate = sum(jump_lite.bytes_of(address) or mean for address in remote["path"])
    return Plan(
        table,
        int(here["bytes"].sum()),
        round(estimate),
        _commands(remote["path"].tolist(), destination),
    )


def _place(path: str) -> tuple[str, str, int]:
    """(path, where, bytes) of a file."""
    if path.startswith("s3://"):
        return path, "s3", 0
    if os.path.isdir(path):
        sizes = (os.path.getsize(os.path.join(at, f)) for at, _, names in os.walk(path) for f in names)
        return path, "disk", sum(sizes)
    if os.path.exists(path):
        return path, "disk", os.path.getsize(path)
    address = _gallery_address(path)
    return (address, "s3", 0) if address else (path, "missing", 0)


def _gallery_address(path: str) -> str:
    """Address on S3 of a file in a local copy of the Gallery's folders (`.../cpg0016-jump/source_4/images/...`)."""
    parts = path.replace("\\", "/").split("/")
    start = next((i for i, part in enumerate(parts) if _PROJECT.fullmatch(part)), None)
    return f"{_BUCKET}/{'/'.join(parts[start:])}" if start is not None and "images" in parts[start:] else ""


def _commands(addresses: list[str], destination: str) -> list[str]:
    """One `aws s3 cp` per folder that fetches exactly the named files; of Zarr stores see `_arrays`."""
    folders: dict[str, list[str]] = {}
    for address in addresses:
        folder, _, file = address.rpartition("/")
        folders.setdefault(folder, []).append(file)
    commands = []
    for folder, files in folders.items():
        local = os.path.join(destination, folder.removeprefix("s3://").partition("/")[2])
        if folder.endswith(".zarr"):
            commands += _arrays(folder, files, local)
            continue
        chosen = " ".join(f"--include {shlex.quote(file)}" for file in files)
        commands.append(
            f"aws s3 cp --no-sign-request --recursive {shlex.quote(folder + '/')} {shlex.quote(local)} "
            f"--exclude '*' {chosen}"
        )
    return commands


def _arrays(store: str, keys: list[str], local: str) -> list[str]:
    """Commands that fetch arrays of a store of JUMP-lite: all at once, a few one by one, others by whole plates."""
    fetch = "aws s3 sync --no-sign-request"
    if len(keys) <= _SINGLY:
        return [
            f"{fetch} {shlex.quote(f'{store}/{key}/')} {shlex.quote(os.path.join(local, key))}"
            for key in keys
        ]
    command = f"{fetch} {shlex.quote(store + '/')} {shlex.quote(local)}"
    if len(keys) == jump_lite.RELEASED_SITES:
        return [command]
    plates = dict.fromkeys(key.rsplit("__", 2)[0] for key in keys)
    chosen = " ".join(f"--include {shlex.quote(f'{plate}__*')}" for plate in plates)
    return [f"{command} --exclude '*' {chosen}"]
