"""Known traps of published screens, found in the table and the file names alone, without reading a pixel."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from camae.dataloader.datasets.common import lacking_channels
from camae.dataloader.manifest import ILLUMINATION, Manifest
from camae.wells import COLUMNS, ROWS, row_name, row_number

# Number of the channel in the file name for DNA, ER, RNA, AGP, Mito, by source of JUMP (cpg0016). Published lists
# disagree, so a difference is reported for a look at the images, never corrected.
_STAINS = ("DNA", "ER", "RNA", "AGP", "Mito")
JUMP_CHANNELS = {
    "source_1": (4, 1, 2, 5, 3),
    **dict.fromkeys(("source_2", "source_5", "source_6", "source_10"), (1, 2, 3, 4, 5)),
    **dict.fromkeys(("source_3", "source_4", "source_8"), (5, 4, 3, 2, 1)),
    **dict.fromkeys(("source_7", "source_13"), (1, 4, 3, 5, 2)),
    "source_9": (4, 1, 5, 3, 2),
    "source_11": (1, 2, 4, 3, 5),
}
# Channel number in names of Opera Phenix, CellVoyager and ImageXpress.
_NUMBER = re.compile(r"(?:-ch(\d+)sk|Z\d{2,3}C(\d{2})\.|_w(\d{1,2})(?=\.|[0-9A-F]{8}-))", re.IGNORECASE)
_WELL = re.compile(r"([A-Z]{1,2})(\d{2})")
_PROJECTED = re.compile(r"proj|maxip|(?<![a-z])mip(?![a-z])|edof", re.IGNORECASE)
_PLATES = ((8, 12), (16, 24), (ROWS, COLUMNS))  # 96, 384 and 1,536 wells


@dataclass(frozen=True)
class Finding:
    """One trap: the manifest row it was met in, a channel ("" for the whole site), what it is, and words."""

    row: int
    channel: str
    problem: str
    detail: str


def table_traps(manifest: Manifest) -> list[Finding]:
    """Traps of any screen: a channel that a site lacks, a file that is named for two channels or two sites."""
    return [*_incomplete(manifest), *_shared_files(manifest)]


def jump_traps(manifest: Manifest) -> list[Finding]:
    """Traps of JUMP and the Cell Painting Gallery, see `check`."""
    finders = (_wells, _channel_order, _mixed_folders, _illumination)
    return [finding for finder in finders for finding in finder(manifest)]


def _incomplete(manifest: Manifest) -> Iterator[Finding]:
    for row, lacking in enumerate(lacking_channels(manifest)):
        if lacking.any():
            names = ", ".join(c for c, gone in zip(manifest.channels, lacking, strict=True) if gone)
            yield Finding(row, "", "incomplete", f"lacks {names}, which other sites of its plate have")


def _shared_files(manifest: Manifest) -> Iterator[Finding]:
    first: dict[str, tuple[int, str]] = {}
    for row in range(len(manifest)):
        for channel in manifest.site_channels(row):
            cell = manifest.path(row, channel)
            owner = first.setdefault(cell, (row, channel))
            if owner != (row, channel):
                yield Finding(row, channel, "shared file", f"the same file as {manifest.where(*owner)}")


def _plates(manifest: Manifest) -> Iterator[tuple[str, pd.DataFrame]]:
    keys = [c for c in ("Metadata_Source", "Metadata_Batch", "Metadata_Plate") if c in manifest.table]
    if "Metadata_Plate" in keys:
        for key, table in manifest.table.groupby(keys, sort=False):
            yield "/".join(str(k) for k in key if k), table


def _wells(manifest: Manifest) -> Iterator[Finding]:
    """Wells that are absent from a plate, are no wells, or have their column numbers cut to one digit."""
    if "Metadata_Well" not in manifest.table:
        return
    for plate, table in _plates(manifest):
        names = table["Metadata_Well"].unique().tolist()
        parsed = {n: m for n in names if (m := _WELL.fullmatch(n))}
        for name in (n for n in names if n not in parsed):
            row = int(table.index[table["Metadata_Well"] == name][0])
            yield Finding(row, "", "well name", f"{name!r} is no well of a plate")
        places = {(row_number(m[1]), int(m[2])) for m in parsed.values()}
        if not places:
            continue
        rows, columns = max(r for r, _ in places), max(c for _, c in places)
        n_rows, n_columns = next(((r, c) for r, c in _PLATES if rows <= r and columns <= c), _PLATES[-1])
        absent = [
            f"{row_name(r)}{c:02d}"
            for r in range(1, n_rows + 1)
            for c in range(1, n_columns + 1)
            if (r, c) not in places
        ]
        if absent:
            detail = (
                f"plate {plate} lacks {len(absent)} of {n_rows * n_columns} wells: {', '.join(absent[:6])}"
            )
            yield Finding(
                int(table.index[0]), "", "wells absent", detail + (" ..." if len(absent) > 6 else "")
            )
        if columns <= 9 and rows > 8:
            detail = f"plate {plate} has {rows} rows and no column above {columns}: column numbers may have been cut"
            yield Finding(int(table.index[0]), "", "wells cut", detail)


def _channel_order(manifest: Manifest) -> Iterator[Finding]:
    """Channels whose number in the file name changes within a plate, or is not the one published for the source."""
    for plate, table in _plates(manifest):
        usual: dict[str, int] = {}
        for channel in manifest.channels:
            numbers = {
                int(row): n
                for row, cell in table[channel].items()
                if (n := _channel_number(cell)) is not None
            }
            if not numbers:
                continue
            usual[channel] = Counter(numbers.values()).most_common(1)[0][0]
            for row in (r for r, n in numbers.items() if n != usual[channel]):
                detail = (
                    f"is number {numbers[row]} in the file name, {usual[channel]} in most of plate {plate}"
                )
                yield Finding(row, channel, "channel order", detail)
        source = str(table.get("Metadata_Source", pd.Series([""])).iloc[0])
        published = dict(zip(_STAINS, JUMP_CHANNELS.get(source, ()), strict=False))
        for channel, number in usual.items():
            if channel in published and published[channel] != number:
                row = int(table.index[(table[channel] != "").to_numpy()][0])
                detail = (
                    f"is number {number} in the file names, {published[channel]} is published for {source}"
                )
                yield Finding(row, channel, "channel order", f"{detail}: look at the images")


def _channel_number(cell: str) -> int | None:
    match = _NUMBER.search(os.path.basename(cell))
    return int(next(g for g in match.groups() if g)) if match else None


def _mixed_folders(manifest: Manifest) -> Iterator[Finding]:
    """Planes of a plate of which some lie in folders of projections and some do not, as raw ones would."""
    for plate, table in _plates(manifest):
        for channel in manifest.channels:
            cells = table[channel][table[channel] != ""]
            projected = cells.map(lambda cell: bool(_PROJECTED.search(os.path.dirname(cell)))).astype(bool)
            if projected.any() and not projected.all():
                fewer = projected if projected.mean() <= 0.5 else ~projected
                row = int(fewer.index[fewer][0])
                detail = f"{int(fewer.sum())} of {len(cells)} planes of plate {plate} lie in a folder of " + (
                    "projections, the others do not"
                    if fewer is projected
                    else "raw planes, the others are projected"
                )
                yield Finding(row, channel, "raw and projected", detail)


def _illumination(manifest: Manifest) -> Iterator[Finding]:
    """Illumination functions whose file is named after another plate or channel."""
    for channel in manifest.channels:
        column = ILLUMINATION + channel
        if column not in manifest.table:
            continue
        plates = manifest.table.get("Metadata_Plate", pd.Series("", index=manifest.table.index))
        seen: set[tuple[str, str]] = set()
        for row, (cell, plate) in enumerate(zip(manifest.table[column], plates, strict=True)):
            match = re.fullmatch(r"(.+)_Illum(.+)\.npy", os.path.basename(cell))
            if match is None or (cell, plate) in seen:
                continue
            seen.add((cell, plate))
            if match[2].removeprefix("Orig") != channel or (plate and match[1] != plate):
                detail = f"its illumination function is named for {match[2]} of plate {match[1]}: {cell}"
                yield Finding(row, channel, "illumination", detail)
