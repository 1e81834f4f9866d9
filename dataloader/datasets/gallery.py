"""Dataset reader of the Cell Painting Gallery: images by channel name from its `load_data` tables.

Layout: `<root>/[<project>/]<source>/{images/<batch>/images/<plate>__.../Images/*.tiff, images/<batch>/illum/..,
workspace/load_data_csv/<batch>/<plate>/load_data.csv, workspace/metadata/platemaps/<batch>/...}`.
The order of channels differs between sources, so columns are taken by name only. Tables of CellProfiler itself
(`FileName_Orig*`, `PathName_*`, `URL_*`, `ImageNumber`, each also behind `Image_`) are read in the same way.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pandas as pd

from camae.dataloader.datasets.common import table_stem, tables_in, unique, validated
from camae.dataloader.datasets.gallery_paths import NamedFolder, local_folders
from camae.dataloader.datasets.platemaps import with_platemaps
from camae.dataloader.identity import normal_columns
from camae.dataloader.manifest import ILLUMINATION, Manifest
from camae.errors import CamaeError
from camae.omissions import Omissions
from camae.text_table import read_text_table
from camae.wells import row_name

# The table that also names illumination functions is preferred where it exists.
_STEMS = ("load_data_with_illum", "load_data")
_IMAGE_COLUMN = re.compile(r"(?:Image_)?(?:FileName|URL)_")
_PREFIXED = re.compile(r"Image_(?=FileName_|PathName_|URL_|Metadata_|ImageNumber$)")
# What CellProfiler and instruments call the site of a well, the first that is there counts.
_SITES = ("Metadata_FieldID", "Metadata_Field", "Metadata_FoV", "ImageNumber")


def is_load_data(columns: list[str]) -> bool:
    """Test for a table of images by name of file and folder, rather than a manifest."""
    return any(_IMAGE_COLUMN.match(c) for c in columns)


def load_data_files(root: Path) -> list[Path]:
    """Paths of the `load_data` tables under `root`, one per plate, at most two folders (project, source) down."""
    plates: set[Path] = set()
    for prefix in ("", "*/", "*/*/"):
        plates.update(p for p in root.glob(f"{prefix}workspace/load_data_csv/*/*") if p.is_dir())
    chosen = (_chosen(plate) for plate in sorted(plates))
    return [file for file in chosen if file is not None]


def _chosen(plate: Path) -> Path | None:
    """The table of one plate: with illumination functions first, Parquet before CSV."""
    files = {table_stem(p.name): p for p in reversed(tables_in(plate, (".parquet", ".csv")))}
    parquet = {table_stem(p.name): p for p in tables_in(plate, (".parquet",))}
    return next((parquet.get(s) or files[s] for s in _STEMS if s in files), None)


def read(path: str | os.PathLike[str], incomplete: str = "error") -> Manifest:
    """Manifest of all plates under a Gallery folder, or of one `load_data` file.

    Paths of another machine are resolved by finding their tail under the folder (see gallery_paths). Planes that are
    only named by an s3:// address keep it. Perturbations come from the platemaps, by plate and well.
    Raises CamaeError when sites lack files (see `incomplete`), a table names no image, or two sites one file.
    """
    root = Path(path).absolute()
    files = [root] if root.is_file() else load_data_files(root)
    if not files:
        raise CamaeError(f"{root}: holds no workspace/load_data_csv/<batch>/<plate>/load_data.csv")
    base = root if root.is_dir() else _home(root)
    left_out = Omissions()
    notes: list[str] = []
    for plate in sorted({p.parent for f in files for p in f.parent.parent.glob("*/") if root.is_dir()}):
        if plate != root and not any(f.parent.parent == plate for f in files):
            left_out.add("plate", plate, "its folder holds no load_data table")
    tables = [_plate(file, base, notes) for file in files]
    _resolve(tables)
    table = pd.concat(tables, ignore_index=True).fillna("")
    channels = unique(c for t in tables for c in t.attrs["channels"])
    _refuse_shared_files(table, channels, root)
    # A source without brightfield is not incomplete: a plate must be complete in its own table's channels.
    lacks = pd.concat([_lacking(t) for t in tables], ignore_index=True)
    sparse = any(set(t.attrs["channels"]) != set(channels) for t in tables)
    return validated(table, base, channels, incomplete, lacks, sparse, left_out, notes)


def _workspace_of(file: Path) -> Path | None:
    return next((parent for parent in file.parents if parent.name == "workspace"), None)


def _home(file: Path) -> Path:
    """Folder that the paths of a table start from: the source's, or the table's own outside a workspace."""
    workspace = _workspace_of(file)
    return workspace.parent if workspace is not None else file.parent


def _plate(file: Path, base: Path, notes: list[str]) -> pd.DataFrame:
    """One plate's table: metadata, and per channel its (named folder, file), resolved later.

    attrs["channels"] are the channels it names.
    """
    raw = _plain_names(read_text_table(file), file)
    channels = _channels(raw, file)
    if raw.empty:
        raise CamaeError(f"{file}: has column names and no row, so it names no site")
    home = _home(file)
    bases = (home, base, *home.parents)
    table = with_platemaps(_metadata(raw, file), home / "workspace", notes)
    for name in channels:
        table[name] = _named(raw, name, "Orig", table["Metadata_Plate"], bases)
        if f"FileName_Illum{name}" in raw:
            table[ILLUMINATION + name] = _named(raw, name, "Illum", table["Metadata_Plate"], bases)
    table.attrs["channels"] = channels
    return table


def _plain_names(raw: pd.DataFrame, file: Path) -> pd.DataFrame:
    """Columns without CellProfiler's prefix Image_."""
    names = {c: _PREFIXED.sub("", c) for c in raw.columns}
    both = [c for c in names if names[c] != c and names[c] in names]
    if both:
        raise CamaeError(f"{file}: has both {both[0]} and {names[both[0]]}: remove one")
    return raw.rename(columns=names)


def _metadata(raw: pd.DataFrame, file: Path) -> pd.DataFrame:
    names = {c: f"Metadata_{c[9:]}" for c in raw.columns if c.lower().startswith("metadata_")}
    if twice := [c for c in names if names[c] != c and names[c] in names]:
        raise CamaeError(f"{file}: has both {twice[0]} and {names[twice[0]]}: remove one")
    meta = normal_columns(raw[list(names)].rename(columns=names))
    workspace = _workspace_of(file)
    meta["Metadata_Source"] = meta.get("Metadata_Source", workspace.parent.name if workspace else "")
    meta["Metadata_Batch"] = meta.get("Metadata_Batch", file.parent.parent.name if workspace else "")
    meta["Metadata_Plate"] = meta.get("Metadata_Plate", file.parent.name)
    rows, columns = meta.get("Metadata_Row"), meta.get("Metadata_Col", meta.get("Metadata_Column"))
    if "Metadata_Well" not in meta and rows is not None and columns is not None:
        letters = [row_name(int(r)) if r.isdecimal() and 0 < int(r) < 100 else r for r in rows]
        meta["Metadata_Well"] = [f"{r}{c}" for r, c in zip(letters, columns, strict=True)]
    site = next((c for c in _SITES if c in raw), None)
    if "Metadata_Site" not in meta and site is not None:
        meta["Metadata_Site"] = raw[site]
    for column in ("Metadata_Well", "Metadata_Site"):
        if column not in meta:
            raise CamaeError(f"{file}: has no column {column}")
    return normal_columns(meta)


def _channels(raw: pd.DataFrame, file: Path) -> list[str]:
    names = [
        match[1]
        for column in raw.columns
        if (match := re.match(r"(?:FileName|URL)_(?:Orig)?(?!Illum)(.+)$", str(column)))
    ]
    if not names:
        raise CamaeError(f"{file}: has no FileName_ or URL_ column, so it names no image")
    for name in names:
        if name.startswith("Metadata_"):
            raise CamaeError(f"{file}: a channel cannot be called {name}, as metadata are: rename its column")
    return unique(names)


def _named(
    raw: pd.DataFrame, name: str, kind: str, plates: pd.Series, bases: tuple[Path, ...]
) -> list[tuple[NamedFolder, str] | None]:
    """(named folder, file) of a channel's image or illumination function in every row, None where it has none."""
    label = f"{kind}{name}" if f"FileName_{kind}{name}" in raw or f"URL_{kind}{name}" in raw else name
    if f"FileName_{label}" in raw:
        folders = raw[f"PathName_{label}"] if f"PathName_{label}" in raw else [""] * len(raw)
        pairs = list(zip(folders, raw[f"FileName_{label}"], strict=True))
    else:
        pairs = [url.rpartition("/")[::2] for url in raw[f"URL_{label}"]]
    return [
        (NamedFolder(folder, plate, bases), file) if file else None
        for (folder, file), plate in zip(pairs, plates, strict=True)
    ]


def _resolve(tables: list[pd.DataFrame]) -> None:
    """Local paths in place of named folders and files. All plates at once: two may not lead to one folder."""
    columns = [
        (t, c)
        for t in tables
        for name in t.attrs["channels"]
        for c in (name, ILLUMINATION + name)
        if c in t.columns
    ]
    local = local_folders(cell[0] for t, c in columns for cell in t[c] if cell is not None)
    for table, column in columns:
        table[column] = [f"{local[cell[0]]}/{cell[1]}" if cell is not None else "" for cell in table[column]]


def _refuse_shared_files(table: pd.DataFrame, channels: list[str], root: Path) -> None:
    """Raise CamaeError where two sites name one file: one of them would get the other's pixels."""
    cells = table[channels].melt(ignore_index=False, value_name="file")
    cells = cells[cells["file"] != ""]
    cells["row"] = cells.index
    owners = cells.drop_duplicates(["file", "row"])
    again = owners[owners.duplicated("file", keep=False)]
    if len(again):
        first, second = again[again["file"] == again["file"].iloc[0]]["row"].iloc[:2]
        words = [
            " ".join(f"{n.lower()} {table.at[row, f'Metadata_{n}']}" for n in ("Plate", "Well", "Site"))
            for row in (first, second)
        ]
        raise CamaeError(
            f"{root}: {words[0]} and {words[1]} name one file, {again['file'].iloc[0]}: mend the load_data table, or "
            "give it PathName_ columns that tell the plates apart"
        )


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
    return pd.Series(reasons, dtype=object)
