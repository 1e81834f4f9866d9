"""Dataset reader of a plain folder: plate, well, site and channel come from the file names."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pandas as pd

from camae.dataloader.datasets.common import files_below, normal_well, validated
from camae.dataloader.manifest import Manifest
from camae.errors import CamaeError

IMAGE_SUFFIXES = (".tif", ".tiff", ".png", ".jp2")
_GUID = r"[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}"
_END = r"\.(?:tiff?|png|jp2)$"
# Tried in this order; the one that fits most files is taken.
PATTERNS = {
    "ImageXpress": (
        rf"(?P<plate>[^/]+)_(?P<well>[A-P]\d{{2}})_s(?P<site>\d+)_(?P<channel>w\d)(?:{_GUID})?{_END}"
    ),
    "plate_well_site_channel": (
        rf"(?P<plate>[^/]+)_(?P<well>[A-Z]{{1,2}}\d{{2}})_s(?P<site>\d+)_(?P<channel>[^_/]+){_END}"
    ),
    "well_site_channel": rf"(?:^|/)(?P<well>[A-Z]{{1,2}}\d{{2}})_s(?P<site>\d+)_(?P<channel>[^_/]+){_END}",
    "Opera Phenix": (
        rf"r(?P<row>\d{{2}})c(?P<column>\d{{2}})f(?P<site>\d+)p\d+-(?P<channel>ch\d+)sk\d+fk\d+fl\d+{_END}"
    ),
    "CellVoyager": (
        rf"(?P<plate>[^/]+)_(?P<well>[A-P]\d{{2}})_T\d{{4}}F(?P<site>\d{{3}})"
        rf"L\d{{2}}A\d{{2}}Z\d{{2}}(?P<channel>C\d{{2}}){_END}"
    ),
}


def read(path: str | os.PathLike[str], incomplete: str = "error", pattern: str | None = None) -> Manifest:
    """Manifest of every image under `path` whose name (relative, with `/`) fits the pattern.

    pattern: regular expression, searched for; groups plate, well (or row and column), site, channel, and
             optionally batch. Missing plate: the folder's name; missing site: "1".
    Raises CamaeError when no image fits, or two files claim the same plane.
    """
    root = Path(path).absolute()
    names = [n for n in files_below(root) if n.lower().endswith(IMAGE_SUFFIXES) and not _is_hidden(n)]
    if not names:
        raise CamaeError(f"{root}: holds no TIFF, PNG or JPEG 2000 image")
    expression = _chosen(names, pattern, root)
    sites: dict[tuple[str, str, str, str], dict[str, str]] = {}
    for name in names:
        match = expression.search(name)
        if match is None:
            continue
        key, channel = _key(match.groupdict(), name, root)
        planes = sites.setdefault(key, {})
        if channel in planes:
            raise CamaeError(
                f"{root}: {planes[channel]} and {name} both claim plate {key[1]} well {key[2]} site {key[3]} "
                f"channel {channel}: give a pattern that tells them apart"
            )
        planes[channel] = name
    channels = sorted({c for planes in sites.values() for c in planes})
    rows = [
        dict(zip(("Metadata_Batch", "Metadata_Plate", "Metadata_Well", "Metadata_Site"), key, strict=True))
        | planes
        for key, planes in sorted(sites.items())
    ]
    return validated(pd.DataFrame(rows, dtype=object), root, channels, incomplete)


def _is_hidden(name: str) -> bool:
    return name.rpartition("/")[2].startswith(".")


def _chosen(names: list[str], pattern: str | None, root: Path) -> re.Pattern[str]:
    candidates = [pattern] if pattern is not None else list(PATTERNS.values())
    try:
        expressions = [re.compile(c) for c in candidates]
    except re.error as error:
        raise CamaeError(f"pattern {pattern!r} is not a regular expression: {error}") from error
    if pattern is not None and "channel" not in expressions[0].groupindex:
        raise CamaeError(f"pattern {pattern!r} has no group (?P<channel>...)")
    fits = [sum(e.search(n) is not None for n in names) for e in expressions]
    if max(fits) == 0:
        raise CamaeError(
            f"{root}: no image name fits "
            + (f"the pattern {pattern!r}" if pattern else f"a known scheme ({', '.join(PATTERNS)})")
            + f", for example {names[0]}: give a pattern with groups plate, well, site, channel"
        )
    return expressions[fits.index(max(fits))]


def _key(groups: dict[str, str | None], name: str, root: Path) -> tuple[tuple[str, str, str, str], str]:
    parent = name.rsplit("/", 1)[0].rsplit("/", 1)[-1] if "/" in name else root.name
    well = groups.get("well")
    if well is None and groups.get("row") and groups.get("column"):
        well = f"{chr(ord('A') + int(groups['row'] or 1) - 1)}{int(groups['column'] or 1):02d}"
    site = groups.get("site") or "1"
    key = (
        groups.get("batch") or "",
        groups.get("plate") or parent,
        normal_well(well or ""),
        str(int(site)) if site.isdigit() else site,
    )
    return key, str(groups["channel"])
