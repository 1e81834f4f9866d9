"""Quality control of a screen: finds missing, damaged, constant, saturated and duplicate planes, and known traps."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd

from camae.dataloader.manifest import Manifest
from camae.dataloader.pixel_size import pixel_size
from camae.dataloader.read_pixels import checked_reader, read_plane
from camae.dataloader.screen_tools.known_traps import Finding, jump_traps, table_traps
from camae.errors import CamaeError, MissingFileError
from camae.processors import usable_cpus

COLUMNS = ["row", "plate", "well", "site", "channel", "path", "problem", "detail"]
KNOWN = ("jump",)
SATURATED_SHARE = 0.01
# Full scale of 8-, 10-, 12-, 14- and 16-bit cameras: pixels piled up there are clipped.
FULL_SCALE = (255, 1023, 4095, 16383, 65535)
_SAME_PIXEL_SIZE = 0.01  # relative: closer ones are the same up to rounding in the file


@dataclass(frozen=True)
class _Plane:
    row: int
    channel: str
    path: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    digest: bytes = b""
    pixel_size: float | None = None
    problem: str = ""
    detail: str = ""


def check(
    manifest: Manifest,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    reader: str | None = None,
    known: str | None = None,
) -> pd.DataFrame:
    """Quality control: reads every plane once, in full.

    progress: called as progress(planes done, planes in all).
    reader:   image back-end, see `read_crops`.
    known:    "jump" also looks for what is published to be wrong in JUMP (cpg0016) and the Cell Painting Gallery:
              wells that are absent, not wells or cut, order of channels by source, raw and projected folders mixed,
              illumination functions of another plate or channel.
    Returns a table of problems, one row each (columns COLUMNS), empty when there are none; its column `problem` is
    "missing", "unreadable" (truncated, damaged, unsupported, no permission, on S3), "size", "dtype" or "pixel size"
    (not that of most planes), "saturated" (1 % of the pixels or more at a camera's full scale), "constant" (a plane of
    zeros is named so), "duplicate" (the pixels of an earlier plane), "incomplete" (a site lacks a channel that others
    of its plate have), "shared file" (one file named twice), or a known trap. Its attrs["looked_at"] says how many
    planes and sites were looked at.
    """
    if known is not None and known not in KNOWN:
        raise CamaeError(f"known={known!r}: choose one of {', '.join(KNOWN)}")
    checked_reader(reader)
    jobs = [(row, channel) for row in range(len(manifest)) for channel in manifest.site_channels(row)]
    planes: list[_Plane] = []
    with ThreadPoolExecutor(workers or usable_cpus()) as pool:
        for plane in pool.map(lambda job: _examined(manifest, job[0], job[1], reader), jobs):
            planes.append(plane)
            if progress is not None:
                progress(len(planes), len(jobs))
    traps = [*table_traps(manifest), *(jump_traps(manifest) if known == "jump" else [])]
    found = _problems(manifest, planes) + [_trap_row(manifest, trap) for trap in traps]
    table = pd.DataFrame(found, columns=COLUMNS)
    table.attrs["looked_at"] = looked_at(manifest)
    return table


def looked_at(manifest: Manifest) -> str:
    """Words for what a check looks at, e.g. "240 planes of 48 sites in 12 wells of 1 plate"."""
    planes = sum(len(manifest.site_channels(row)) for row in range(len(manifest)))
    words = [f"{_count(planes, 'plane')} of {_count(len(manifest), 'site')}"]
    keys = [
        c
        for c in ("Metadata_Source", "Metadata_Batch", "Metadata_Plate", "Metadata_Well")
        if c in manifest.table
    ]
    if "Metadata_Well" in keys:
        words.append(f"in {_count(len(manifest.table[keys].drop_duplicates()), 'well')}")
    if "Metadata_Plate" in keys:
        plates = manifest.table[[c for c in keys if c != "Metadata_Well"]].drop_duplicates()
        words.append(f"of {_count(len(plates), 'plate')}")
    return " ".join(words)


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _examined(manifest: Manifest, row: int, channel: str, reader: str | None) -> _Plane:
    path = ""
    try:
        path = manifest.path(row, channel)
        pixels = read_plane(path, reader)
    except MissingFileError as error:
        return _Plane(row, channel, path, problem="missing", detail=str(error))
    except CamaeError as error:
        return _Plane(row, channel, path, problem="unreadable", detail=str(error))
    low, high = pixels.min(), pixels.max()
    problem = detail = ""
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        problem, detail = "unreadable", f"{path}: holds values that are not numbers (NaN or infinity)"
    elif low == high:
        problem, detail = (
            "constant",
            f"every pixel is {low}" + (", the plane is filled with zeros" if not low else ""),
        )
    elif pixels.dtype.kind == "u" and int(high) in FULL_SCALE:
        share = float((pixels == high).mean())
        if share >= SATURATED_SHARE:
            problem, detail = "saturated", f"{share:.1%} of the pixels are {high}"
    digest = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).digest()
    kind = str(pixels.dtype)
    return _Plane(row, channel, path, pixels.shape, kind, digest, pixel_size(path), problem, detail)


def _problems(manifest: Manifest, planes: list[_Plane]) -> list[list[object]]:
    read = [p for p in planes if p.shape]
    usual_shape = Counter(p.shape for p in read).most_common(1)[0][0] if read else ()
    usual_dtype = Counter(p.dtype for p in read).most_common(1)[0][0] if read else ""
    sizes = Counter(p.pixel_size for p in read if p.pixel_size is not None)
    usual_size = sizes.most_common(1)[0][0] if sizes else None
    first: dict[bytes, _Plane] = {}
    found: list[list[object]] = []
    for plane in planes:
        if plane.problem:
            found.append(_table_row(manifest, plane, plane.problem, plane.detail))
        if not plane.shape:
            continue
        if plane.shape != usual_shape:
            detail = f"is {_size(plane.shape)}, most planes are {_size(usual_shape)}"
            found.append(_table_row(manifest, plane, "size", detail))
        if plane.dtype != usual_dtype:
            found.append(
                _table_row(manifest, plane, "dtype", f"is {plane.dtype}, most planes are {usual_dtype}")
            )
        if usual_size and plane.pixel_size and abs(plane.pixel_size / usual_size - 1) > _SAME_PIXEL_SIZE:
            detail = f"has pixels of {plane.pixel_size:.4g} um, most planes of {usual_size:.4g} um"
            found.append(_table_row(manifest, plane, "pixel size", detail))
        earlier = first.setdefault(plane.digest, plane)
        # A file that is named twice is a problem of the table and reported as such.
        if earlier is not plane and plane.problem != "constant" and plane.path != earlier.path:
            detail = f"same pixels as {manifest.where(earlier.row, earlier.channel)}"
            found.append(_table_row(manifest, plane, "duplicate", detail))
    return found


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _table_row(manifest: Manifest, plane: _Plane, problem: str, detail: str) -> list[object]:
    return [plane.row, *_place(manifest, plane.row), plane.channel, plane.path, problem, detail]


def _trap_row(manifest: Manifest, trap: Finding) -> list[object]:
    path = manifest.path(trap.row, trap.channel) if trap.channel else ""
    return [trap.row, *_place(manifest, trap.row), trap.channel, path, trap.problem, trap.detail]


def _place(manifest: Manifest, row: int) -> list[object]:
    site = manifest.table.iloc[row]
    return [site.get(f"Metadata_{name}", "") for name in ("Plate", "Well", "Site")]
