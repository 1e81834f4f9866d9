"""Dataset reader of the Cell Painting Gallery: images by channel name from its `load_data` tables.

Layout: `<root>/[<project>/]<source>/{images/<batch>/images/<plate>__.../Images/*.tiff, images/<batch>/illum/..,
workspace/load_data_csv/<batch>/<plate>/load_data.csv, workspace/metadata/platemaps/<batch>/...}`.
The order of channels differs between sources, so columns are taken by name only.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path, PurePosixPath

import pandas as pd

from camae.dataloader.datasets.common import validated
from camae.dataloader.datasets.platemaps import with_platemaps
from camae.dataloader.manifest import ILLUMINATION, Manifest
from camae.errors import CamaeError
from camae.text_table import read_text_table

# The table that also names illumination functions is preferred where it exists.
_TABLES = [
    f"{stem}{suffix}"
    for stem in ("load_data_with_illum", "load_data")
    for suffix in (".parquet", ".csv", ".csv.gz")
]


def load_data_files(root: Path) -> list[Path]:
    """Paths of the `load_data` tables under `root`, one per plate, at most two folders (project, source) down."""
    plates: set[Path] = set()
    for prefix in ("", "*/", "*/*/"):
        for file in root.glob(f"{prefix}workspace/load_data_csv/*/*/load_data*"):
            plates.add(file.parent)
    return [
        next(plate / name for name in _TABLES if (plate / name).is_file())
        for plate in sorted(plates)
        if any((plate / name).is_file() for name in _TABLES)
    ]


def read(path: str | os.PathLike[str], incomplete: str = "error") -> Manifest:
    """Manifest of all plates under a Gallery folder, or of one `load_data` file.

    Paths of another machine are resolved by finding their tail under the folder. Planes that are only named
    by an s3:// address keep it. Perturbations come from the platemaps, by plate and well.
    Raises CamaeError when sites lack files (see `incomplete`), or a table names no image.
    """
    root = Path(path).absolute()
    files = [root] if root.is_file() else load_data_files(root)
    if not files:
        raise CamaeError(f"{root}: holds no workspace/load_data_csv/<batch>/<plate>/load_data.csv")
    base = root if root.is_dir() else _workspace_of(root).parent
    tables = [_plate(file, base) for file in files]
    table = pd.concat(tables, ignore_index=True).fillna("")
    channels = list(dict.fromkeys(c for t in tables for c in t.attrs["channels"]))
    # A source without brightfield is not incomplete: a plate must be complete in its own table's channels.
    lacks = pd.concat([_lacking(t) for t in tables], ignore_index=True)
    sparse = any(set(t.attrs["channels"]) != set(channels) for t in tables)
    return validated(table, base, channels, incomplete, absent=lacks, mixed=sparse)


def _workspace_of(file: Path) -> Path:
    for parent in file.parents:
        if parent.name == "workspace":
            return parent
    return file.parent


def _plate(file: Path, base: Path) -> pd.DataFrame:
    """One plate's table with channel columns; attrs["channels"] are those it names."""
    raw = read_text_table(file)
    channels = _channels(raw, file)
    workspace = _workspace_of(file)
    bases = (workspace.parent, base, *workspace.parent.parents)
    meta = raw[[c for c in raw.columns if c.startswith("Metadata_")]].copy()
    meta["Metadata_Source"] = meta.get("Metadata_Source", workspace.parent.name)
    meta["Metadata_Batch"] = meta.get("Metadata_Batch", file.parent.parent.name)
    meta["Metadata_Plate"] = meta.get("Metadata_Plate", file.parent.name)
    for column in ("Metadata_Well", "Metadata_Site"):
        if column not in meta:
            raise CamaeError(f"{file}: has no column {column}")
    table = with_platemaps(meta, workspace, file)
    for name in channels:
        table[name] = _paths(raw, name, "Orig", bases)
        if f"FileName_Illum{name}" in raw:
            table[ILLUMINATION + name] = _paths(raw, name, "Illum", bases)
    table.attrs["channels"] = channels
    return table


def _channels(raw: pd.DataFrame, file: Path) -> list[str]:
    names = [
        match[1]
        for column in raw.columns
        if (match := re.match(r"(?:FileName|URL)_(?:Orig)?(?!Illum)(.+)$", str(column)))
    ]
    if not names:
        raise CamaeError(f"{file}: has no FileName_ or URL_ column, so it names no image")
    return list(dict.fromkeys(names))


def _paths(raw: pd.DataFrame, name: str, kind: str, bases: tuple[Path, ...]) -> list[str]:
    label = f"{kind}{name}" if f"FileName_{kind}{name}" in raw or f"URL_{kind}{name}" in raw else name
    if f"FileName_{label}" in raw:
        folders = raw[f"PathName_{label}"] if f"PathName_{label}" in raw else [""] * len(raw)
        pairs = list(zip(folders, raw[f"FileName_{label}"], strict=True))
    else:
        pairs = [tuple(url.rpartition("/")[::2]) if url else ("", "") for url in raw[f"URL_{label}"]]
    return [f"{_resolved(folder, bases)}/{file}" if file else "" for folder, file in pairs]


@cache
def _resolved(folder: str, bases: tuple[Path, ...]) -> str:
    """The local folder that `folder` (of another machine) means: its longest tail found under a base."""
    folder = folder.rstrip("/\\")
    if folder.startswith("file:"):
        folder = folder[5:]
    if "://" not in folder and os.path.isabs(folder) and os.path.isdir(folder):
        return folder
    address = folder.split("://", 1)[-1].replace("\\", "/")
    parts = [p for p in PurePosixPath(address).parts if p not in ("/", ".", "..")]
    for start in range(len(parts)):
        for base in bases:
            candidate = base.joinpath(*parts[start:])
            if candidate.is_dir():
                return str(candidate)
    if "://" in folder:
        return folder
    if not parts:
        return str(bases[0])
    tail = parts[parts.index("images") :] if "images" in parts else parts
    return str(bases[0].joinpath(*tail))


def _lacking(table: pd.DataFrame) -> pd.Series:
    """For every site, what is missing on disk or unnamed, "" where all is well."""
    listings: dict[str, set[str]] = {}

    def there(path: str) -> bool:
        if "://" in path:
            return True
        folder, _, file = path.rpartition("/")
        if folder not in listings:
            listings[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        return file in listings[folder]

    channels = table.attrs["channels"]
    reasons = []
    for row in table[channels].itertuples(index=False):
        unnamed = [c for c, path in zip(channels, row, strict=True) if not path]
        gone = [(c, path) for c, path in zip(channels, row, strict=True) if path and not there(path)]
        if unnamed:
            reasons.append(f"lacks {', '.join(unnamed)}")
        else:
            reasons.append(f"channel {gone[0][0]}: no such file {gone[0][1]}" if gone else "")
    return pd.Series(reasons)
