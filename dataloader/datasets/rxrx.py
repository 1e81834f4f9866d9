"""Dataset reader of RxRx1, RxRx2, RxRx3, RxRx19a and RxRx19b folders and of RxRx3-core's Parquet files.

Two layouts of file names occur.

Nested: `<experiment>/Plate<n>/<well>_s<site>_w<channel>.png` (RxRx3: also without the w, also .jp2);
flat: `<experiment>_<plate>_<well>_w<channel>.png`, site 1. Channels are named w1, w2, ...: only RxRx19 states its
stains; STAINS_6 and STAINS_5 can be given as `channel_names`.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from camae.dataloader.datasets.common import control_type, files_below, tables_in, validated, warn_left_out
from camae.dataloader.datasets.joins import joined
from camae.dataloader.manifest import Manifest
from camae.errors import CamaeError
from camae.omissions import Omissions
from camae.text_table import column_names, read_arrow_table, read_text_table
from camae.wells import normal_well

STAINS_6 = {"w1": "DNA", "w2": "ER", "w3": "Actin", "w4": "RNA", "w5": "Mito", "w6": "AGP"}
STAINS_5 = {"w1": "DNA", "w2": "ER", "w3": "Actin", "w4": "RNA", "w5": "AGP"}
N_CHANNELS = {"rxrx1": 6, "rxrx2": 6, "rxrx3": 6, "rxrx19a": 5, "rxrx19b": 6, "rxrx3-core": 6}

_EXPERIMENT = r"(?P<experiment>[A-Za-z0-9]+-\d+)"
_WELL = r"(?P<well>[A-Z]{1,2}\d{1,3})"
NESTED = re.compile(
    rf"(?:^|/){_EXPERIMENT}/Plate(?P<plate>\d+)/{_WELL}_s(?P<site>\d+)_w?(?P<channel>\d)(?:\.(?:png|jp2))?$",
    re.IGNORECASE,
)
FLAT = re.compile(
    rf"(?:^|/){_EXPERIMENT}_(?P<plate>\d+)_{_WELL}(?:_s(?P<site>\d+))?_w(?P<channel>\d)\.(?:png|jp2)$",
    re.IGNORECASE,
)
# What the metadata tables of the data sets call things, the first that is there counts.
_ALIASES = {
    "experiment": ("experiment", "experiment_name"),
    "plate": ("plate",),
    "well": ("well", "address"),
    "perturbation": ("sirna", "gene", "treatment"),
    "control": ("well_type",),
    "cell": ("cell_type",),
}
_NEGATIVE = ("untreated", "empty", "empty_control", "crispr_control", "dmso")
_KEYS = ("Metadata_Batch", "Metadata_Plate", "Metadata_Well", "Metadata_Site")


def _images(root: Path, left_out: Omissions) -> Iterator[tuple[re.Match[str], str]]:
    """(match of the name, address) of every RxRx image under root, Parquet rows included; others are noted."""
    for name in files_below(root):
        if name.lower().endswith((".png", ".jp2", ".tif", ".tiff")):
            match = _matched(name, root)
            if match is not None:
                yield match, name
            elif not name.rpartition("/")[2].startswith("."):
                left_out.add("file", name, "the name is not one of an RxRx image")
        elif name.lower().endswith(".parquet"):
            yield from _parquet_images(root, name, left_out)


def _matched(name: str, root: Path) -> re.Match[str] | None:
    # An experiment's own folder may be given as the root: its name then belongs to the path.
    return NESTED.search(f"{root.parent.name}/{root.name}/{name}") or FLAT.search(name)


def _parquet_images(root: Path, name: str, left_out: Omissions) -> Iterator[tuple[re.Match[str], str]]:
    """RxRx3-core: one encoded plane per row, `__key__` says which."""
    if "__key__" not in column_names(root / name):
        return
    for row, key in enumerate(read_arrow_table(root / name, ["__key__"]).column(0).to_pylist()):
        match = NESTED.search(str(key))
        if match is not None:
            yield match, f"{name}#{row}"
        else:
            left_out.add("plane", f"{name}#{row} ({key})", "the key is not one of an RxRx image")


def looks_like(root: Path) -> bool:
    """Format test: the folder holds an image with an RxRx name (the first one found decides)."""
    return next(_images(root.absolute(), Omissions()), None) is not None


def read(
    path: str | os.PathLike[str], incomplete: str = "error", n_channels: int = N_CHANNELS["rxrx1"]
) -> Manifest:
    """Manifest of the RxRx images under `path`, channels w1..w<n>, with perturbation and control type.

    Metadata comes from every CSV in `path` or its parent that names experiment, plate and well (RxRx1's train,
    test and *_controls tables, or a metadata*.csv). The nested and the flat layout of one well are different files
    and become different rows. Plates are named <experiment>_<plate>, as their numbers repeat.
    """
    root = Path(path).absolute()
    channels = [f"w{i}" for i in range(1, n_channels + 1)]
    left_out = Omissions()
    sites: dict[tuple[str, str, str, str, bool], dict[str, str]] = {}
    for match, address in _images(root, left_out):
        site = str(int(match["site"] or "1"))
        key = (match["experiment"], match["plate"], normal_well(match["well"]), site, match.re is NESTED)
        planes = sites.setdefault(key, {})
        channel = f"w{match['channel']}"
        if channel in planes:
            raise CamaeError(f"{root}: {planes[channel]} and {address} claim the same plane")
        planes[channel] = address
    if not sites:
        raise CamaeError(f"{root}: holds no image named as RxRx images are")
    images = sum(len(planes) for planes in sites.values())
    if len(left_out):
        unfit = [o.item for o in left_out]
        warn_left_out("image", unfit, images + len(unfit), root, "the name is not one of an RxRx image")
    rows = [dict(zip(_KEYS, key[:4], strict=True)) | planes for key, planes in sorted(sites.items())]
    table = pd.DataFrame(rows, dtype=object)
    _refuse_other_channels(table, channels, root)
    table = table.reindex(columns=[*_KEYS, *channels]).fillna("")
    notes: list[str] = []
    table = _apart(_with_metadata(table, root, notes), [key[4] for key in sorted(sites)])
    return validated(table, root, channels, incomplete, left_out=left_out, notes=notes)


def _refuse_other_channels(table: pd.DataFrame, channels: list[str], root: Path) -> None:
    """Raise CamaeError for images of a channel that the data set does not have: they would be left out."""
    others = sorted(set(table.columns) - set(channels) - set(_KEYS))
    if others:
        fit = (
            ", ".join(name for name, n in N_CHANNELS.items() if f"w{n}" >= others[-1])
            or "folder, with a pattern"
        )
        raise CamaeError(
            f"{root}: has images of channel {others[-1]}, and the format has {channels[0]} to {channels[-1]}: give "
            f"format= one of {fit}"
        )


def _apart(table: pd.DataFrame, nested: list[bool]) -> pd.DataFrame:
    """Table whose sites that lie in both layouts are told apart by the column Metadata_Layout."""
    if len(set(nested)) < 2 or not table.duplicated(list(_KEYS)).any():
        return table
    layouts = ["nested" if is_nested else "flat" for is_nested in nested]
    # A flat copy of a nested site is another image of the same well: it gets a site of its own.
    again = table.duplicated(list(_KEYS), keep=False).to_numpy()
    sites = [
        f"{site}_{layout}" if both else site
        for site, layout, both in zip(table["Metadata_Site"], layouts, again, strict=True)
    ]
    return table.assign(Metadata_Site=sites)


def _with_metadata(table: pd.DataFrame, root: Path, notes: list[str]) -> pd.DataFrame:
    known: dict[tuple[str, str, str], tuple[str, str, str]] = {}
    files = []
    for folder in (root.parent, root):
        for file in tables_in(folder, (".csv", ".tsv")):
            found = list(_metadata_rows(read_text_table(file)))
            files += [file] if found else []
            for key, values in found:
                if key not in known or not known[key][0]:
                    known[key] = values
                elif values[0] and values[0] != known[key][0]:
                    raise CamaeError(
                        f"{file}: names {values[0]!r} for well {key[2]} of plate {key[1]} of {key[0]}, another row or "
                        f"table {known[key][0]!r}: a well has one perturbation"
                    )
    facts = ["Metadata_Perturbation", "Metadata_control_type", "Metadata_cell_type"]
    keys = list(_KEYS[:3])
    if known:
        right = pd.DataFrame([(*k, *v) for k, v in known.items()], columns=[*keys, *facts], dtype=object)
        table, match = joined(table, right, keys, ", ".join(map(str, files)))
        notes.append(str(match))
        if match.left_over:
            warnings.warn(str(match), stacklevel=3)
    else:
        table = table.assign(**dict.fromkeys(facts, ""))
    batch = table["Metadata_Batch"]
    cells = table["Metadata_cell_type"]
    return table.assign(
        Metadata_Plate=batch + "_" + table["Metadata_Plate"],
        Metadata_cell_type=cells.where(cells != "", batch.str.rsplit("-", n=1).str[0]),
    )


def _metadata_rows(meta: pd.DataFrame) -> Iterator[tuple[tuple[str, str, str], tuple[str, str, str]]]:
    """((experiment, plate, well), (perturbation, control type, cell type)) of a table that is RxRx metadata."""
    columns = {what: [c for c in names if c in meta.columns] for what, names in _ALIASES.items()}
    if not (columns["experiment"] and columns["plate"] and columns["well"]):
        return
    for row in meta.to_dict("records"):
        if not all(any(row[c] for c in columns[what]) for what in ("experiment", "plate", "well")):
            continue
        first = {what: next((row[c] for c in names if row[c]), "") for what, names in columns.items()}
        kind = control_type(first["control"])
        if not columns["control"] and first["perturbation"].lower() in _NEGATIVE:
            kind = "negcon"
        key = (first["experiment"], first["plate"], normal_well(first["well"]))
        yield key, (first["perturbation"], kind, first["cell"])
