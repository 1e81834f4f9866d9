"""Repacking of a screen into standard TIFFs that are fast to crop: 256-pixel zstd tiles or uncompressed strips.

Any TIFF reader still opens the result. Every packed plane is read back and compared before it counts; a journal
makes an interrupted run go on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile

from camae.dataloader.backends.addresses import refuse_remote, require, split_address
from camae.dataloader.manifest import ILLUMINATION, Manifest
from camae.dataloader.read_pixels import checked_reader, plane_kind, read_plane, read_window
from camae.errors import CamaeError, MissingBackendError, MissingFileError, OutputError
from camae.files import open_lines, output_error, remove_unfinished, write_atomic
from camae.processors import usable_cpus
from camae.wells import DEPTH, TIME

CODECS = ("zstd", "none")
TILE = 256
_LONGEST_NAME = 60  # characters; file systems allow 255 bytes


@dataclass(frozen=True)
class PackedPlane:
    """Journal entry of one plane: source and packed file, their sizes in bytes, SHA-256 of the pixels."""

    source: str
    source_bytes: int
    source_mtime_ns: int
    packed: str
    packed_bytes: int
    sha256: str


@dataclass(frozen=True)
class PackResult:
    """Summary of a run of `pack`.

    manifest:           of the packed planes.
    planes:             planes in all; planes_reused: those that an earlier run had packed.
    bytes_*:            size on disk before and after.
    crops_per_second_*: random windows read by one thread, before and after.
    """

    manifest: Manifest
    planes: int
    planes_reused: int
    bytes_before: int
    bytes_after: int
    crops_per_second_before: float
    crops_per_second_after: float

    def __str__(self) -> str:
        before, after = self.crops_per_second_before, self.crops_per_second_after
        return (
            f"{self.planes} planes packed ({self.planes_reused} from an earlier run): "
            f"{self.bytes_before / 1e9:.3f} GB -> {self.bytes_after / 1e9:.3f} GB, "
            f"{before:.0f} -> {after:.0f} crops/s ({_times(after / before)})"
        )


def _times(gain: float) -> str:
    return f"{gain:.1f} times as fast" if gain >= 1 else f"{1 / gain:.1f} times slower"


def pack(
    manifest: Manifest,
    out: str | os.PathLike[str],
    codec: str = "zstd",
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    reader: str | None = None,
) -> PackResult:
    """Repacking: writes every plane to `out/planes/...`, then `out/manifest.parquet`; resumable.

    codec: "zstd" (256-pixel tiles) or "none" (uncompressed strips: largest and fastest).
    progress: called as progress(planes done, planes in all).
    reader: image back-end, see `read_crops`; "tifffile" also packs float planes.
    Raises CamaeError naming row, file and channel; what was packed until then is kept and reused.
    """
    if codec not in CODECS:
        raise CamaeError(f"codec={codec!r}: pack writes {' or '.join(CODECS)}")
    checked_reader(reader)
    folder = Path(out).absolute()
    jobs = [(row, channel) for row in range(len(manifest)) for channel in manifest.site_channels(row)]
    targets = _targets(manifest, jobs)
    packed = _packed_manifest(manifest, folder, targets)
    with _refused_output(folder):
        done, reused = _pack_planes(manifest, jobs, folder, targets, codec, workers, progress, reader)
        packed.write(folder / "manifest.parquet")
    return PackResult(
        packed,
        len(done),
        reused,
        sum(p.source_bytes for p in done),
        sum(p.packed_bytes for p in done),
        _crops_per_second(manifest, reader),
        _crops_per_second(packed, reader),
    )


def _pack_planes(
    manifest: Manifest,
    jobs: list[tuple[int, str]],
    folder: Path,
    targets: dict[tuple[int, str], str],
    codec: str,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
    reader: str | None,
) -> tuple[list[PackedPlane], int]:
    """All planes in the order of jobs, and how many of them an earlier run had packed."""
    folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    journal = folder / f"pack_{codec}.jsonl"
    known = _read_journal(journal)
    done: list[PackedPlane] = []
    reused = 0
    with open_lines(journal) as log, ThreadPoolExecutor(workers or usable_cpus()) as pool:
        futures = [
            pool.submit(_pack_plane, manifest, job, folder, targets[job], codec, known, reader)
            for job in jobs
        ]
        try:
            for future in futures:
                plane, fresh = future.result()
                done.append(plane)
                reused += not fresh
                if fresh:
                    log.write(json.dumps(asdict(plane)) + "\n")
                    log.flush()
                if progress is not None:
                    progress(len(done), len(jobs))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return done, reused


def _remove_leftovers(folder: Path) -> None:
    """Remove the unfinished files of runs that were killed."""
    for place, _, _ in os.walk(folder):
        remove_unfinished(place)


def _targets(manifest: Manifest, jobs: list[tuple[int, str]]) -> dict[tuple[int, str], str]:
    """Readable names below the output folder: planes/<source>/<batch>/<plate>/<well>_s<site>_<channel>.tif.

    Names that differ only in what is cleaned, in case or in the form of their accents are one on some file systems:
    all but the first get a number.
    """
    targets: dict[tuple[int, str], str] = {}
    taken: set[str] = set()
    steps = [c for c in (*TIME, *DEPTH) if c in manifest.table]
    for row, channel in jobs:
        site = manifest.table.iloc[row]
        folders = [site.get(f"Metadata_{n}", "") for n in ("Source", "Batch", "Plate")]
        step = "".join(f"_{c.removeprefix('Metadata_').lower()}{site[c]}" for c in steps)
        file = f"{site.get('Metadata_Well', '')}_s{site.get('Metadata_Site', '')}{step}_{channel}"
        plain = "/".join(["planes", *(_safe_name(f) for f in folders if f), _safe_name(file)])
        name, number = plain, 1
        while _as_any_file_system(name) in taken:
            number += 1
            name = f"{plain}_{number}"
        taken.add(_as_any_file_system(name))
        targets[row, channel] = f"{name}.tif"
    return targets


def _as_any_file_system(name: str) -> str:
    return unicodedata.normalize("NFKC", name.casefold()).casefold()


def _safe_name(text: str) -> str:
    return re.sub(r"[^\w.+-]", "_", text).strip(".")[:_LONGEST_NAME] or "_"


def _read_journal(path: Path) -> dict[str, PackedPlane]:
    """Packed planes by name; a last line cut off by an interruption is ignored."""
    known: dict[str, PackedPlane] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            plane = PackedPlane(**json.loads(line))
        except (json.JSONDecodeError, TypeError):
            continue
        known[plane.packed] = plane
    return known


def _pack_plane(
    manifest: Manifest,
    job: tuple[int, str],
    folder: Path,
    target: str,
    codec: str,
    known: dict[str, PackedPlane],
    reader: str | None,
) -> tuple[PackedPlane, bool]:
    """The journal line of one plane, and whether it was written now."""
    try:
        source = manifest.path(*job)
        refuse_remote(source)
        status = require(split_address(source)[0])
        path, before = folder / target, known.get(target)
        if (
            before is not None
            and (before.source, before.source_bytes, before.source_mtime_ns)
            == (source, status.st_size, status.st_mtime_ns)
            and path.exists()
            and path.stat().st_size == before.packed_bytes
        ):
            return before, False
        pixels = read_plane(source, reader)
        _write(path, pixels, codec, reader)
        digest = hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()
        line = PackedPlane(source, status.st_size, status.st_mtime_ns, target, path.stat().st_size, digest)
        return line, True
    except CamaeError as error:
        raise type(error)(f"{manifest.where(*job)}: {error}") from error


def _write(path: Path, pixels: np.ndarray, codec: str, reader: str | None) -> None:
    def write(temporary: Path) -> None:
        tifffile.imwrite(
            temporary,
            pixels,
            photometric="minisblack",
            metadata=None,
            tile=(TILE, TILE) if codec == "zstd" else None,
            rowsperstrip=64 if codec == "none" else None,
            compression="zstd" if codec == "zstd" else None,
        )
        if not np.array_equal(read_plane(temporary, reader), pixels):
            raise CamaeError(f"{path}: reads back differently from what was written: the disk may be failing")

    try:
        write_atomic(path, write)
    except ImportError as error:
        raise MissingBackendError(f"packing with zstd needs the package imagecodecs ({error})") from error


@contextmanager
def _refused_output(folder: Path) -> Iterator[None]:
    """Context in which a screen is packed: an output that the disk refuses also says that packed planes are kept."""
    try:
        yield
    except MissingFileError:
        raise
    except OSError as error:
        found = error if isinstance(error, OutputError) else output_error(folder, error)
        sentence = f"{found}; packed planes are kept, run it again to go on"
        raise OutputError(sentence, found.errno) from error


def _packed_manifest(manifest: Manifest, folder: Path, targets: dict[tuple[int, str], str]) -> Manifest:
    table = manifest.table.copy()
    for column in [c for c in table.columns if c.startswith(ILLUMINATION)]:
        channel = column.removeprefix(ILLUMINATION)
        table[column] = [manifest.illumination_path(row, channel) or "" for row in range(len(manifest))]
    for channel in manifest.channels:
        table[channel] = pd.Series(
            [targets.get((row, channel), "") for row in range(len(manifest))], dtype=object
        )
    return Manifest(table, folder)


def _crops_per_second(
    manifest: Manifest, reader: str | None, seconds: float = 0.5, size: int = TILE
) -> float:
    """Random windows of random sites, one after the other, for about `seconds`."""
    rng = np.random.default_rng(0)
    began, n = time.perf_counter(), 0
    while n < 4 or time.perf_counter() - began < seconds:
        row = int(rng.integers(len(manifest)))
        H, W, *_ = plane_kind(manifest.path(row, manifest.site_channels(row)[0]), reader)
        edge = min(size, H, W)
        y, x = int(rng.integers(H - edge + 1)), int(rng.integers(W - edge + 1))
        read_window(manifest, row, y, x, edge, reader=reader)
        n += 1
    return n / (time.perf_counter() - began)
