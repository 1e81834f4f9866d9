"""RxRx1 images, in either layout.

Nested: `<experiment>/Plate<n>/<well>_s<site>_w<channel>.png`; flat: `<experiment>_<plate>_<well>_w<channel>.png`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pandas as pd

from camae.dataloader.datasets.common import control_type, finish, normal_well
from camae.dataloader.manifest import Manifest, read_table
from camae.errors import CamaeError

NESTED = re.compile(
    r"(?:^|/)(?P<experiment>[A-Za-z0-9]+-\d+)/Plate(?P<plate>\d+)/(?P<well>[A-Z]{1,2}\d{2})_s(?P<site>\d+)_w(?P<channel>\d)\.png$"
)
FLAT = re.compile(
    r"(?:^|/)(?P<experiment>[A-Za-z0-9]+-\d+)_(?P<plate>\d+)_(?P<well>[A-Z]{1,2}\d{2})(?:_s(?P<site>\d+))?_w(?P<channel>\d)\.png$"
)
N_CHANNELS = 6


def _pngs(root: Path, limit: int | None = None) -> list[str]:
    found: list[str] = []
    for folder, folders, files in os.walk(root):
        folders.sort()
        at = os.path.relpath(folder, root).replace(os.sep, "/")
        found += [f if at == "." else f"{at}/{f}" for f in sorted(files) if f.endswith(".png")]
        if limit is not None and len(found) >= limit:
            break
    return found


def _matched(name: str, root: Path) -> re.Match[str] | None:
    # An experiment's own folder may be given as the root: its name then belongs to the path.
    return NESTED.search(f"{root.parent.name}/{root.name}/{name}") or FLAT.search(name)


def looks_like(root: Path) -> bool:
    """Whether the first image found carries an RxRx name."""
    root = root.absolute()
    names = _pngs(root, limit=1)
    return bool(names) and _matched(names[0], root) is not None


def read(path: str | os.PathLike[str], incomplete: str = "error", n_channels: int = N_CHANNELS) -> Manifest:
    """A manifest of the RxRx images under `path`, channels w1..w6, with perturbation and control type.

    Metadata comes from every CSV in `path` or its parent that has the columns experiment, plate, well
    (RxRx1's train, test and *_controls tables, or metadata.csv). The nested and the flat layout of one well
    are different files and become different rows.
    """
    root = Path(path).absolute()
    channels = [f"w{i}" for i in range(1, n_channels + 1)]
    sites: dict[tuple[str, str, str, str, bool], dict[str, str]] = {}
    for name in _pngs(root):
        match = _matched(name, root)
        if match is None:
            continue
        nested = match.re is NESTED
        key = (match["experiment"], match["plate"], match["well"], match["site"] or "1", nested)
        plane = sites.setdefault(key, {})
        channel = f"w{match['channel']}"
        if channel in plane:
            raise CamaeError(f"{root}: {plane[channel]} and {name} claim the same plane")
        plane[channel] = name
    if not sites:
        raise CamaeError(f"{root}: holds no PNG named as RxRx images are")
    columns = ("Metadata_Batch", "Metadata_Plate", "Metadata_Well", "Metadata_Site")
    rows = [dict(zip(columns, key[:4], strict=True)) | plane for key, plane in sorted(sites.items())]
    table = pd.DataFrame(rows, dtype=object).reindex(columns=[*columns, *channels]).fillna("")
    return finish(_with_metadata(table, root), root, channels, incomplete)


def _with_metadata(table: pd.DataFrame, root: Path) -> pd.DataFrame:
    known: dict[tuple[str, str, str], tuple[str, str, str]] = {}
    for folder in (root.parent, root):
        for file in sorted(folder.glob("*.csv")):
            meta = read_table(file)
            if not {"experiment", "plate", "well"} <= set(meta.columns):
                continue
            sirna = meta["sirna"] if "sirna" in meta else pd.Series("", index=meta.index)
            kind = meta["well_type"] if "well_type" in meta else pd.Series("", index=meta.index)
            cell = (
                meta["cell_type"] if "cell_type" in meta else meta["experiment"].str.rsplit("-", n=1).str[0]
            )
            wells = meta["well"].map(normal_well)
            columns = (meta["experiment"], meta["plate"], wells, sirna, kind, cell)
            for experiment, plate, well, *values in zip(*columns, strict=True):
                key = (experiment, plate, well)
                if key not in known or not known[key][0]:
                    known[key] = (values[0], values[1], values[2])
    keys = zip(table["Metadata_Batch"], table["Metadata_Plate"], table["Metadata_Well"], strict=True)
    values = [known.get(key, ("", "", key[0].rsplit("-", 1)[0])) for key in keys]
    return table.assign(
        # Plate numbers repeat in every experiment; the plate's name must not.
        Metadata_Plate=table["Metadata_Batch"] + "_" + table["Metadata_Plate"],
        Metadata_Perturbation=[v[0] for v in values],
        Metadata_control_type=[control_type(v[1]) for v in values],
        Metadata_cell_type=[v[2] for v in values],
    )
