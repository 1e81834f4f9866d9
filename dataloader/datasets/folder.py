"""Dataset reader of a plain folder: plate, well, site and channel come from the file names."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import pandas as pd

from camae.dataloader.datasets.common import files_below, validated, warn_left_out
from camae.dataloader.datasets.name_matching import Groups, match_builtin, match_user_pattern
from camae.dataloader.manifest import Manifest
from camae.errors import CamaeError
from camae.omissions import Omissions
from camae.wells import normal_well, row_name

IMAGE_SUFFIXES = (".tif", ".tiff", ".png", ".jp2")
# Formats of images that are not read: they are counted, not passed over in silence.
_OTHER_SUFFIXES = (
    *(
        ".jpg",
        ".jpeg",
        ".bmp",
        ".gif",
        ".webp",
        ".dib",
        ".c01",
        ".flex",
        ".stk",
        ".nd2",
        ".czi",
        ".lif",
        ".lsm",
    ),
    *(".ims", ".vsi", ".oib", ".oif", ".dv", ".mrc", ".svs", ".ndpi"),
)
_GUID = r"[0-9A-F]{8}-(?:[0-9A-F]{4}-){3}[0-9A-F]{12}"
_END = r"\.(?:tiff?|png|jp2)$"
_WELL = r"(?P<well>[A-Z]{1,2}-?\d{1,3}|r\d{1,2}c\d{1,2})"
_STEPS = r"(?:TimePoint_(?P<time>\d+)/)?(?:ZStep_(?P<z>\d+)/)?"
# Tried in this order, upper and lower case alike; the one that fits most files is taken.
PATTERNS = {
    "ImageXpress": (
        rf"{_STEPS}(?P<plate>[^/]+)_{_WELL}_s(?P<site>\d+)_(?P<channel>w\d{{1,2}})(?:{_GUID})?{_END}"
    ),
    "plate_well_site_channel": rf"{_STEPS}(?P<plate>[^/]+)_{_WELL}_s(?P<site>\d+)_(?P<channel>[^_/]+){_END}",
    "well_site_channel": rf"(?:^|/){_WELL}_s(?P<site>\d+)_(?P<channel>[^_/]+){_END}",
    "Opera Phenix": (
        r"r(?P<row>\d{2})c(?P<column>\d{2})f(?P<site>\d+)p(?P<z>\d+)-(?P<channel>ch\d+)sk(?P<time>\d+)fk\d+fl\d+"
        + _END
    ),
    "CellVoyager": (
        rf"(?P<plate>[^/]+)_{_WELL}_T(?P<time>\d{{4}})F(?P<site>\d{{3,4}})L\d{{2}}A\d{{2}}"
        rf"Z(?P<z>\d{{2,3}})(?P<channel>C\d{{2}}){_END}"
    ),
}
# Folders inside an export, never the name of a plate.
_INNER = re.compile(r"images|timepoint_\d+|zstep_\d+", re.IGNORECASE)
_KEYS = ("Batch", "Plate", "Well", "Site", "Time", "Z")
Key = tuple[str, str, str, str, str, str]


def read(path: str | os.PathLike[str], incomplete: str = "error", pattern: str | None = None) -> Manifest:
    """Manifest of every image under `path` whose name (relative, with `/`) fits the pattern.

    pattern: regular expression, searched for; groups plate, well (or row and column), site, channel, and
             optionally batch, time, z. Missing plate: the folder's name (of a Phenix export, the one around Images);
             missing site: "1". A time or z group becomes the column Metadata_Time or Metadata_Z and a part of the
             site's identity; those of the known schemes do where a site has several.
    Images whose names do not fit are left out with a warning and stand in `left_out`.
    Raises CamaeError when no image fits, or two files claim the same plane.
    """
    root = Path(path).absolute()
    visible = [n for n in files_below(root) if not n.rpartition("/")[2].startswith(".")]
    names = [n for n in visible if n.lower().endswith(IMAGE_SUFFIXES)]
    left_out = _other_formats(visible, root)
    if not names:
        other = f" (but {left_out.lines()[0]})" if len(left_out) else ""
        raise CamaeError(f"{root}: holds no TIFF, PNG or JPEG 2000 image{other}")
    found = match_user_pattern(pattern, names) if pattern is not None else match_builtin(PATTERNS, names)
    if not any(found):
        raise CamaeError(
            f"{root}: no image name fits "
            + (f"the pattern {pattern!r}" if pattern else f"a known scheme ({', '.join(PATTERNS)})")
            + f", for example {names[0]}: give a pattern with groups plate, well, site, channel"
        )
    reason = (
        "the name does not fit the pattern" if pattern else "the name does not fit the scheme of the others"
    )
    unfit = [name for name, groups in zip(names, found, strict=True) if groups is None]
    if unfit:
        warn_left_out("image", unfit, len(names), root, reason)
    for name in unfit:
        left_out.add("file", name, reason)
    sites = _sites(
        [(n, g) for n, g in zip(names, found, strict=True) if g is not None], root, pattern is not None
    )
    channels = sorted({c for planes in sites.values() for c in planes})
    rows = [
        {
            f"Metadata_{n}": value
            for n, value in zip(_KEYS, key, strict=True)
            if value or n not in ("Time", "Z")
        }
        | planes
        for key, planes in sorted(sites.items())
    ]
    return validated(pd.DataFrame(rows, dtype=object), root, channels, incomplete, left_out=left_out)


def _other_formats(names: list[str], root: Path) -> Omissions:
    left_out = Omissions()
    others = [n for n in names if os.path.splitext(n)[1].lower() in _OTHER_SUFFIXES]
    for name in others:
        left_out.add("file", name, "its image format is not read")
    if others:
        warn_left_out("file", others, len(names), root, "their image format is not read")
    return left_out


def _sites(found: list[tuple[str, Groups]], root: Path, by_user: bool) -> dict[Key, dict[str, str]]:
    """Files of every site by channel. Steps in time and z that no site needs are not told apart."""
    whole = [_key(groups, name, root) for name, groups in found]
    steps = [
        by_user
        or any(n > 1 for n in Counter((key[:4], *_others(key, i), c) for key, c in set(whole)).values())
        for i in (4, 5)
    ]
    if not any(steps) and any(n > 1 for n in Counter((key[:4], c) for key, c in set(whole)).values()):
        steps = [True, True]  # time and z go forward together
    sites: dict[Key, dict[str, str]] = {}
    for (name, _), (key, channel) in zip(found, whole, strict=True):
        site = (*key[:4], key[4] if steps[0] else "", key[5] if steps[1] else "")
        planes = sites.setdefault(site, {})
        if channel in planes:
            raise CamaeError(
                f"{root}: {planes[channel]} and {name} both claim plate {key[1]} well {key[2]} site {key[3]} "
                f"channel {channel}: give a pattern that tells them apart"
            )
        planes[channel] = name
    return sites


def _others(key: Key, i: int) -> tuple[str, ...]:
    """The step that is not the i-th: time beside z, z beside time."""
    return tuple(key[j] for j in (4, 5) if j != i)


def _key(groups: Groups, name: str, root: Path) -> tuple[Key, str]:
    well = groups.get("well")
    if well is None and groups.get("row") and groups.get("column"):
        row = groups["row"] or ""
        well = f"{row_name(int(row)) if row.isdigit() and int(row) else row}{groups['column']}"
    key = (
        groups.get("batch") or "",
        groups.get("plate") or _plate_folder(name, root),
        normal_well(well or ""),
        _number(groups.get("site") or "1"),
        _number(groups.get("time") or ""),
        _number(groups.get("z") or ""),
    )
    return key, str(groups["channel"])


def _number(text: str) -> str:
    return str(int(text)) if text.isdecimal() else text


def _plate_folder(name: str, root: Path) -> str:
    """Name of the folder of a file that can be a plate's."""
    folders = [*root.parts[1:], *name.split("/")[:-1]]
    return next((f for f in reversed(folders) if not _INNER.fullmatch(f)), root.name)
