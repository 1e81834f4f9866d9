"""Keys of sites from the groups of a file name: batch, plate, well, site, and steps in time and z."""

from __future__ import annotations

import re
from pathlib import Path

from camae.dataloader.datasets.name_matching import Groups
from camae.wells import normal_name, normal_well, row_name

# Folders inside an export, never the name of a plate.
_INNER = re.compile(r"images|timepoint_\d+|zstep_\d+", re.IGNORECASE)
KEYS = ("Batch", "Plate", "Well", "Site", "Time", "Z")
Key = tuple[str, str, str, str, str, str]


def site_key(groups: Groups, name: str, root: Path) -> Key:
    """Key of the site that a file shows; without a plate the folder's name, without a site "1"."""
    well = groups.get("well")
    if well is None and groups.get("row") and groups.get("column"):
        row = groups["row"] or ""
        well = f"{row_name(int(row)) if row.isdigit() and int(row) else row}{groups['column']}"
    return (
        normal_name(groups.get("batch") or ""),
        normal_name(groups.get("plate") or plate_folder(name, root)),
        normal_well(well or ""),
        _number(groups.get("site") or "1"),
        _number(groups.get("time") or ""),
        _number(groups.get("z") or ""),
    )


def key_columns(key: Key) -> dict[str, str]:
    """Metadata columns of a key; time and z only where they are told apart."""
    pairs = zip(KEYS, key, strict=True)
    return {f"Metadata_{name}": value for name, value in pairs if value or name not in ("Time", "Z")}


def key_words(key: Key) -> str:
    """Words for a key, e.g. "plate P1 well A01 site 2"."""
    return " ".join(f"{name.lower()} {value}" for name, value in zip(KEYS, key, strict=True) if value)


def _number(text: str) -> str:
    return str(int(text)) if text.isdecimal() else text


def plate_folder(name: str, root: Path) -> str:
    """Name of the folder of a file that can be a plate's."""
    folders = [*root.parts[1:], *name.split("/")[:-1]]
    return next((f for f in reversed(folders) if not _INNER.fullmatch(f)), root.name)
