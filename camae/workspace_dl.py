"""Layouts of deep-learning profiles: `workspace_dl` of the Cell Painting Gallery, and DeepProfiler's npz files.

Under `workspace_dl` (cellpainting-gallery, documentation/data_structure.md), a network being a model and its hash:

    embeddings/<network>/<batch>/<plate>/<well>-<site>/embedding.parquet     rows of a site, or of its cells
    embeddings/<network>/<batch>/<plate>/<well>/<site>/embedding.npz         the same, as DeepProfiler has it
    embeddings/<network>/<release>/<source>/<batch>/<plate>/<well>-<site>/embedding.parquet     JUMP-lite, read only
    profiles/<network>/<batch>/<plate>/<plate>.parquet                       wells
    collated/<network>/collated.parquet, consensus/<network>/consensus.parquet   all wells; all treatments

DeepProfiler itself writes `<plate>/<well>/<site>.npz` or `<plate>/<well>_<site>.npz`: features (cells, D), locations
(cells, 2), and a pickled dictionary, which is not read here: nothing is unpickled. Files written here hold their
metadata as JSON beside it, so that they come back with every row, name and number.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd

from camae.embedding_table import feature_columns, feature_names, is_own_file, read_table, write_table
from camae.errors import CamaeError
from camae.files import write_atomic
from camae.locks import writing
from camae.omissions import Omissions
from camae.text_table import text_as_given
from camae.wells import normal_well, spelled

SiteForm: TypeAlias = Literal["parquet", "npz"]
_PLACE = ("Metadata_Batch", "Metadata_Plate", "Metadata_Well", "Metadata_Site")
_CENTERS = (
    ("Metadata_Cell_X", "Metadata_Cell_Y"),
    ("Metadata_Location_Center_X", "Metadata_Location_Center_Y"),
    ("Metadata_Nuclei_Location_Center_X", "Metadata_Nuclei_Location_Center_Y"),
)
_LONG = {"tile", "metric", "value"}  # columns of JUMP-lite's long form
_OWN = "camae"  # key of an npz: what the file says about itself, and its columns, as JSON


@dataclass(frozen=True)
class ProfileFile:
    """A file of a layout: its place on the plates ("" where the path does not say), and its network ("" for none)."""

    path: Path
    network: str
    place: Mapping[str, str]


def write_workspace(
    table: pd.DataFrame,
    about: Mapping[str, object],
    folder: str | Path,
    network: str,
    form: SiteForm = "parquet",
) -> list[Path]:
    """Write a table under `folder` in the Gallery's layout, and return its files.

    table: of sites or their cells (Metadata_Site), of wells (Metadata_Well), else of treatments. network: name of
        the model and its hash. form: of sites' files.
    Files of the same network that are there already stay or are replaced. Each is written whole or not at all.
    Raises CamaeError without a plate, well or site in a row, or a batch in some, for names that make no folder, for a
    network that is there by another model or read-out, and for npz files of wells or treatments.
    """
    folder = Path(folder)
    _check_name(network, "network")
    if form not in ("parquet", "npz"):
        raise CamaeError(f"form {form!r} is none of parquet, npz")
    kind = next(
        (k for n, k in (("Metadata_Site", "site"), ("Metadata_Well", "well")) if n in table), "treatment"
    )
    if form == "npz" and kind != "site":
        raise CamaeError(
            f"npz files hold the rows of a site, and this table is one of {kind}s; write form='parquet'"
        )
    with writing(folder):
        _refuse_other_vectors(folder, network, about)
        if kind == "treatment":
            return [write_table(folder / "consensus" / network / "consensus.parquet", table, about)]
        if kind == "well":
            written = [
                write_table(folder / "profiles" / network / batch / plate / f"{plate}.parquet", rows, about)
                for (batch, plate), rows in _by_place(table, 2)
            ]
            return [*written, write_table(folder / "collated" / network / "collated.parquet", table, about)]
        root, written = folder / "embeddings" / network, []
        for (batch, plate, well, site), rows in _by_place(table, 4):
            if form == "npz":
                written.append(_write_npz(root / batch / plate / well / site / "embedding.npz", rows, about))
            else:
                written.append(
                    write_table(root / batch / plate / f"{well}-{site}" / "embedding.parquet", rows, about)
                )
        return written


def _by_place(table: pd.DataFrame, depth: int) -> Iterator[tuple[tuple[str, ...], pd.DataFrame]]:
    """Rows of each plate, or site, under the names of its folders. The batch is "batch" where none is named."""
    keys = pd.DataFrame(index=table.index)
    for name in _PLACE[:depth]:
        if name not in table and name != "Metadata_Batch":
            raise CamaeError(f"the table has no column {name}, which names a folder of the layout; add it")
        keys[name] = spelled(text_as_given(table[name]), name) if name in table else ""
        if name == "Metadata_Batch" and (keys[name] == "").all():
            keys[name] = "batch"
        for value in keys[name].unique():
            _check_name(value, name)
    for place, rows in table.groupby([keys[name] for name in keys], sort=False):
        yield tuple(map(str, place)), rows.reset_index(drop=True)


def _check_name(name: str, what: str) -> None:
    if not name.strip() or name.startswith(".") or any(c in name for c in "/\\\0"):
        raise CamaeError(
            f"{what} {name!r} makes no name of a folder; it must not be empty, begin with a dot or hold a slash"
        )


# What a file says of its vectors, beside the model.
_OF_VECTORS = (
    "standardization",
    "crop",
    "tiles",
    "overlap",
    "pool",
    "layers",
    "value_range",
    "dtype",
    "intensity",
)


def _refuse_other_vectors(folder: Path, network: str, about: Mapping[str, object]) -> None:
    """Raise CamaeError where a file of the network says that another model, or another read-out, made it."""
    for kind in ("embeddings", "profiles", "collated", "consensus"):
        for suffix in ("parquet", "npz"):
            first = next((folder / kind / network).rglob(f"[!.]*.{suffix}"), None)
            if first is None:
                continue
            there = _read(first, Omissions())[1] or {}
            if there.get("model_hash") != about.get("model_hash"):
                raise CamaeError(
                    f"{first} is of another model ({there.get('model_hash') or 'not named'}, here "
                    f"{about.get('model_hash') or 'not named'}); choose another network name, output is never mixed"
                )
            if changed := [name for name in _OF_VECTORS if there.get(name) != about.get(name)]:
                raise CamaeError(
                    f"{first} holds vectors made with another {', '.join(changed)}; choose another network name, "
                    "output is never mixed"
                )


def _write_npz(path: Path, rows: pd.DataFrame, about: Mapping[str, object]) -> Path:
    """DeepProfiler's arrays (features, locations) of a site, and its metadata and `about` as JSON."""
    names = feature_names(rows)
    if not names:
        raise CamaeError("the table has no feature columns: nothing to export")
    other = [name for name in rows if name not in set(names)]
    columns = {}
    for name in other:
        column = rows[name]
        plain = isinstance(column.dtype, np.dtype) and column.dtype.kind in "biuf"
        values = column.to_numpy() if plain else text_as_given(column).where(column.notna().to_numpy(), None)
        columns[name] = {"dtype": str(column.dtype) if plain else "object", "values": values.tolist()}
    features = rows[names].to_numpy()
    own = {
        "about": dict(about),
        "columns": columns,
        "order": [str(name) for name in rows.columns],
        "features": {name: str(rows[name].dtype) for name in names},
    }
    arrays = {"features": features, _OWN: np.array(json.dumps(own))}
    for pair in _CENTERS:
        if set(pair) <= set(rows.columns):
            centers = [pd.to_numeric(rows[name], errors="coerce").to_numpy(np.float64) for name in pair]
            arrays["locations"] = np.stack(centers, axis=1)
            break

    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)

    return write_atomic(path, save)


def profile_files(folder: Path) -> list[ProfileFile]:
    """Files of a layout under `folder`, by their paths; none where it holds no such files."""
    found = [*folder.rglob("[!.]*.npz"), *folder.rglob("embedding.parquet")]
    if not found:
        tables = folder.rglob("[!.]*.parquet")
        found = [path for path in tables if path.stem == path.parent.name]
        found = found or [path for n in ("collated", "consensus") for path in folder.rglob(f"{n}.parquet")]
    return [_place_of(path) for path in sorted(found)]


def _place_of(path: Path) -> ProfileFile:
    """Network and place of a file, from its path."""
    parts = [*path.absolute().parts[:-1], path.stem]
    network = source = batch = plate = well = site = ""
    if path.stem in ("collated", "consensus"):
        network = parts[-2]
    elif path.name == "embedding.npz":
        network, batch, plate, well, site = parts[-6:-1]
    elif path.name == "embedding.parquet":
        network, batch, plate, joined = parts[-5:-1]
        well, _, site = joined.rpartition("-")
        if "embeddings" in parts[:-6]:  # below the network a release and the source
            network, source = parts[len(parts) - parts[::-1].index("embeddings")], parts[-5]
    elif path.suffix == ".parquet":
        network, batch, plate = parts[-4:-1]
    elif "_" in path.stem:
        plate = parts[-2]
        well, _, site = path.stem.rpartition("_")
    else:
        plate, well, site = parts[-3:]
    place = dict(zip(_PLACE, (batch, plate, well, site), strict=True))
    return ProfileFile(path, network, {"Metadata_Source": source} | place)


def read_workspace(
    folder: str | Path, omitted: Omissions | None = None
) -> tuple[pd.DataFrame, dict[str, object]]:
    """The table of all files of a layout under `folder`, in the order of their paths, and what they say of the model.

    folder: of one network (`.../embeddings/<network>`), or one above or below it. Files of other programs get the
        metadata that their path names and features emb_0000 ...; pickled metadata are noted in `omitted`.
    Raises CamaeError where there are no such files, or of several networks, or two of one place, or one is damaged.
    """
    folder, left_out = Path(folder), Omissions()
    files = profile_files(folder)
    if not files:
        raise CamaeError(
            f"{folder} holds no files of profiles (embedding.parquet, embedding.npz, <plate>/<well>/<site>.npz, "
            "<plate>/<plate>.parquet)"
        )
    networks = list(dict.fromkeys(file.network for file in files))
    if len(networks) > 1:
        raise CamaeError(
            f"{folder} holds profiles of several networks, {networks[0]} and {networks[1]}; name one"
        )
    _refuse_twice(files)
    tables: list[pd.DataFrame] = []
    about: dict[str, object] = {}
    for file in files:
        rows, said = _read(file.path, left_out)
        about = said or about
        tables.append(_with_place(rows, file.place) if said is None else rows)
    odd = next((k for k, rows in enumerate(tables) if list(rows.columns) != list(tables[0].columns)), None)
    if odd is not None:
        raise CamaeError(
            f"{files[odd].path}: has other columns than {files[0].path}; files of one table have the same"
        )
    if omitted is not None:
        omitted.extend(left_out)
    return pd.concat(tables, ignore_index=True), about


def _refuse_twice(files: Sequence[ProfileFile]) -> None:
    """Raise CamaeError for two files of one plate, or site: layouts side by side would be one table."""
    first: dict[tuple[str, ...], Path] = {}
    for file in files:
        place = tuple(file.place.values())
        if place in first:
            shown = " ".join(filter(None, place)) or "one table"
            raise CamaeError(f"{first[place]} and {file.path} are both of {shown}; name the folder of one")
        first[place] = file.path


def _read(path: Path, omitted: Omissions) -> tuple[pd.DataFrame, dict[str, Any] | None]:
    """Table of a file, and what it says of the model; None for a file of another program."""
    if path.suffix == ".npz":
        return _read_npz(path, omitted)
    rows, about = read_table(path)
    if set(rows.columns) >= _LONG:
        return _wide(path, rows), None
    return rows, about if is_own_file(path) else None


def _wide(path: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of tiles from JUMP-lite's long form, a row for each number of them (metric X_0, X_1 ...)."""
    several = [name for name in ("object", "branch") if name in rows and rows[name].nunique() > 1]
    if several:
        raise CamaeError(
            f"{path}: holds several values of {several[0]}; write the rows of one to a folder of its own"
        )
    keys = [name for name in ("label", "tile") if name in rows]
    numbers = rows["metric"].str.removeprefix("X_").astype(int)
    if rows.assign(metric=numbers).duplicated([*keys, "metric"]).any():
        raise CamaeError(f"{path}: a number of a tile is there twice; keep one row of each")
    wide = rows.assign(metric=numbers).pivot(index=keys, columns="metric", values="value").reset_index()
    tiles = pd.DataFrame({"Metadata_Tile": wide["tile"].astype(str)})
    vectors = wide[range(int(numbers.max()) + 1)].to_numpy()
    return pd.concat([tiles, pd.DataFrame(vectors, columns=feature_columns(vectors.shape[1]))], axis=1)


def _with_place(rows: pd.DataFrame, place: Mapping[str, str]) -> pd.DataFrame:
    """Rows of another program's file with the metadata that its path names, where it has no such columns."""
    named = {name: value for name, value in place.items() if value and name not in rows}
    if "Metadata_Well" in named:
        named["Metadata_Well"] = normal_well(named["Metadata_Well"])
    return pd.concat([pd.DataFrame(named, index=rows.index), rows], axis=1)


def _read_npz(path: Path, omitted: Omissions) -> tuple[pd.DataFrame, dict[str, Any] | None]:
    """Table of a site's npz, and what it says of the model; None for a file of another program."""
    try:
        with np.load(path, allow_pickle=False) as file:
            features = file["features" if "features" in file.files else "f"]
            own = json.loads(str(file[_OWN])) if _OWN in file.files else None
            centers = file["locations"] if "locations" in file.files and own is None else None
            pickled = "metadata" in file.files
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CamaeError(f"{path}: not a readable npz file of features ({error})") from None
    if features.ndim != 2:
        raise CamaeError(
            f"{path}: features have the shape {features.shape}, and one row for each cell is needed"
        )
    if own is not None:
        return _own_rows(features, own), own["about"]
    if pickled:
        omitted.add(
            "pickle",
            path,
            "metadata are not unpickled; plate, well and site are those of the path",
        )
    columns: dict[str, Any] = {}
    if centers is not None and centers.shape == (len(features), 2):
        columns = dict(zip(_CENTERS[1], centers.T, strict=True))
    names = feature_columns(features.shape[1])
    return pd.DataFrame(columns | dict(zip(names, features.T, strict=True)), index=range(len(features))), None


def _own_rows(features: np.ndarray, own: Mapping[str, Any]) -> pd.DataFrame:
    place = {name: k for k, name in enumerate(own["features"])}
    columns: dict[str, Any] = {}
    for name in own["order"]:
        if name in place:
            columns[name] = features[:, place[name]].astype(own["features"][name])
        else:
            held = own["columns"][name]
            columns[name] = np.array(held["values"], dtype=held["dtype"])
    return pd.DataFrame(columns, index=range(len(features)))
