"""Dataset reader of RxRx1, RxRx2, RxRx3, RxRx19a and RxRx19b folders and of RxRx3-core's Parquet files.

Two layouts of file names occur.

Nested: `<experiment>/Plate<n>/<well>_s<site>_w<channel>.png` (RxRx3: also without the w, also .jp2);
flat: `<experiment>_<plate>_<well>_w<channel>.png`, site 1. Channels are named w1, w2, ...: only RxRx19 states its
stains; STAINS_6 and STAINS_5 can be given as `channel_names`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from camae.dataloader.datasets.common import control_type, files_below, normal_well, validated
from camae.dataloader.manifest import Manifest
from camae.errors import CamaeError
from camae.text_table import read_text_table

STAINS_6 = {"w1": "DNA", "w2": "ER", "w3": "Actin", "w4": "RNA", "w5": "Mito", "w6": "AGP"}
STAINS_5 = {"w1": "DNA", "w2": "ER", "w3": "Actin", "w4": "RNA", "w5": "AGP"}
N_CHANNELS = {"rxrx1": 6, "rxrx2": 6, "rxrx3": 6, "rxrx19a": 5, "rxrx19b": 6, "rxrx3-core": 6}

_EXPERIMENT = r"(?P<experiment>[A-Za-z0-9]+-\d+)"
_WELL = r"(?P<well>[A-Z]{1,2}\d{2})"
NESTED = re.compile(
    rf"(?:^|/){_EXPERIMENT}/Plate(?P<plate>\d+)/{_WELL}_s(?P<site>\d+)_w?(?P<channel>\d)(?:\.(?:png|jp2))?$"
)
FLAT = re.compile(
    rf"(?:^|/){_EXPERIMENT}_(?P<plate>\d+)_{_WELL}(?:_s(?P<site>\d+))?_w(?P<channel>\d)\.(?:png|jp2)$"
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


def _images(root: Path) -> Iterator[tuple[re.Match[str], str]]:
    """(match of the name, address) of every RxRx image under root, Parquet rows included."""
    for name in files_below(root):
        if name.endswith((".png", ".jp2")):
            match = _matched(name, root)
            if match is not None:
                yield match, name
        elif name.endswith(".parquet"):
            yield from _parquet_images(root, name)


def _matched(name: str, root: Path) -> re.Match[str] | None:
    # An experiment's own folder may be given as the root: its name then belongs to the path.
    return NESTED.search(f"{root.parent.name}/{root.name}/{name}") or FLAT.search(name)


def _parquet_images(root: Path, name: str) -> Iterator[tuple[re.Match[str], str]]:
    """RxRx3-core: one encoded plane per row, `__key__` says which."""
    import pyarrow.parquet

    if "__key__" not in pyarrow.parquet.read_schema(root / name).names:
        return
    keys = pyarrow.parquet.read_table(root / name, columns=["__key__"]).column(0).to_pylist()
    for row, key in enumerate(keys):
        match = NESTED.search(key)
        if match is not None:
            yield match, f"{name}#{row}"


def looks_like(root: Path) -> bool:
    """Format test: the folder holds an image with an RxRx name (the first one found decides)."""
    return next(_images(root.absolute()), None) is not None


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
    sites: dict[tuple[str, str, str, str, bool], dict[str, str]] = {}
    for match, address in _images(root):
        key = (match["experiment"], match["plate"], match["well"], match["site"] or "1", match.re is NESTED)
        planes = sites.setdefault(key, {})
        channel = f"w{match['channel']}"
        if channel in planes:
            raise CamaeError(f"{root}: {planes[channel]} and {address} claim the same plane")
        planes[channel] = address
    if not sites:
        raise CamaeError(f"{root}: holds no image named as RxRx images are")
    rows = [dict(zip(_KEYS, key[:4], strict=True)) | planes for key, planes in sorted(sites.items())]
    table = pd.DataFrame(rows, dtype=object).reindex(columns=[*_KEYS, *channels]).fillna("")
    return validated(_with_metadata(table, root), root, channels, incomplete)


def _with_metadata(table: pd.DataFrame, root: Path) -> pd.DataFrame:
    known: dict[tuple[str, str, str], tuple[str, str, str]] = {}
    for folder in (root.parent, root):
        for file in sorted(folder.glob("*.csv")):
            for key, values in _metadata_rows(read_text_table(file)):
                if key not in known or not known[key][0]:
                    known[key] = values
    keys = zip(table["Metadata_Batch"], table["Metadata_Plate"], table["Metadata_Well"], strict=True)
    facts = [known.get(key, ("", "", "")) for key in keys]
    return table.assign(
        Metadata_Plate=table["Metadata_Batch"] + "_" + table["Metadata_Plate"],
        Metadata_Perturbation=[v[0] for v in facts],
        Metadata_control_type=[v[1] for v in facts],
        Metadata_cell_type=[
            v[2] or batch.rsplit("-", 1)[0] for v, batch in zip(facts, table["Metadata_Batch"], strict=True)
        ],
    )


def _metadata_rows(meta: pd.DataFrame) -> Iterator[tuple[tuple[str, str, str], tuple[str, str, str]]]:
    """((experiment, plate, well), (perturbation, control type, cell type)) of a table that is RxRx metadata."""
    columns = {what: [c for c in names if c in meta.columns] for what, names in _ALIASES.items()}
    if not (columns["experiment"] and columns["plate"] and columns["well"]):
        return
    for row in meta.to_dict("records"):
        first = {what: next((row[c] for c in names if row[c]), "") for what, names in columns.items()}
        kind = control_type(first["control"])
        if not columns["control"] and first["perturbation"].lower() in _NEGATIVE:
            kind = "negcon"
        key = (first["experiment"], first["plate"], normal_well(first["well"]))
        yield key, (first["perturbation"], kind, first["cell"])
