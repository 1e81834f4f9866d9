"""Quality control of a screen: finds missing, damaged, constant, saturated and duplicate planes."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd

from camae.dataloader.manifest import Manifest
from camae.dataloader.read_pixels import read_plane
from camae.errors import CamaeError, MissingFileError

COLUMNS = ["row", "plate", "well", "site", "channel", "path", "problem", "detail"]
SATURATED_SHARE = 0.01
# Full scale of 8-, 10-, 12-, 14- and 16-bit cameras: pixels piled up there are clipped.
FULL_SCALE = (255, 1023, 4095, 16383, 65535)


@dataclass(frozen=True)
class _Plane:
    row: int
    channel: str
    path: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    digest: bytes = b""
    problem: str = ""
    detail: str = ""


def check(
    manifest: Manifest, workers: int | None = None, progress: Callable[[int, int], None] | None = None
) -> pd.DataFrame:
    """Quality control: reads every plane once, in full.

    progress: called as progress(planes done, planes in all).
    Returns a table of problems, one row each (columns COLUMNS), empty when there are none; its column `problem` is
    "missing", "unreadable" (truncated, damaged, unsupported, no permission, on S3), "size" or "dtype" (not that of
    most planes), "saturated" (1 % of the pixels or more at a camera's full scale), "constant" or "duplicate" (the
    pixels of an earlier plane).
    """
    jobs = [(row, channel) for row in range(len(manifest)) for channel in manifest.site_channels(row)]
    planes: list[_Plane] = []
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        for plane in pool.map(lambda job: _examined(manifest, *job), jobs):
            planes.append(plane)
            if progress is not None:
                progress(len(planes), len(jobs))
    return pd.DataFrame(_problems(manifest, planes), columns=COLUMNS)


def _examined(manifest: Manifest, row: int, channel: str) -> _Plane:
    path = ""
    try:
        path = manifest.path(row, channel)
        pixels = read_plane(path)
    except MissingFileError as error:
        return _Plane(row, channel, path, problem="missing", detail=str(error))
    except CamaeError as error:
        return _Plane(row, channel, path, problem="unreadable", detail=str(error))
    low, high = pixels.min(), pixels.max()
    problem = detail = ""
    if low == high:
        problem, detail = "constant", f"every pixel is {low}"
    elif pixels.dtype.kind == "u" and int(high) in FULL_SCALE:
        share = float((pixels == high).mean())
        if share >= SATURATED_SHARE:
            problem, detail = "saturated", f"{share:.1%} of the pixels are {high}"
    digest = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).digest()
    return _Plane(row, channel, path, pixels.shape, str(pixels.dtype), digest, problem, detail)


def _problems(manifest: Manifest, planes: list[_Plane]) -> list[list[object]]:
    read = [p for p in planes if p.shape]
    usual_shape = Counter(p.shape for p in read).most_common(1)[0][0] if read else ()
    usual_dtype = Counter(p.dtype for p in read).most_common(1)[0][0] if read else ""
    first: dict[bytes, _Plane] = {}
    found: list[list[object]] = []
    for plane in planes:
        if plane.problem:
            found.append(_table_row(manifest, plane, plane.problem, plane.detail))
        if not plane.shape:
            continue
        if plane.shape != usual_shape:
            found.append(
                _table_row(
                    manifest, plane, "size", f"is {_size(plane.shape)}, most planes are {_size(usual_shape)}"
                )
            )
        if plane.dtype != usual_dtype:
            found.append(
                _table_row(manifest, plane, "dtype", f"is {plane.dtype}, most planes are {usual_dtype}")
            )
        earlier = first.setdefault(plane.digest, plane)
        if earlier is not plane and plane.problem != "constant":
            found.append(
                _table_row(
                    manifest,
                    plane,
                    "duplicate",
                    f"same pixels as {manifest.where(earlier.row, earlier.channel)}",
                )
            )
    return found


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _table_row(manifest: Manifest, plane: _Plane, problem: str, detail: str) -> list[object]:
    site = manifest.table.iloc[plane.row]
    place = [site.get(f"Metadata_{name}", "") for name in ("Plate", "Well", "Site")]
    return [plane.row, *place, plane.channel, plane.path, problem, detail]
