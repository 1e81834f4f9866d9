"""Dataset reader of JUMP-lite: a Parquet index of sites, and a Zarr store with one array for each site.

Every array is uint16 (5, y, x), its channels in the order of `JUMP_LITE_CHANNELS`, its name the site's key
`<source>__<batch>__<plate>__<well>__<site>`. The stores hold the same sites: `zstd.zarr` without loss (Zarr format 3),
`jpegxl_lossy_hq.zarr`, `_mq` and `_d20` in JPEG XL (Zarr format 2). https://github.com/afermg/JUMP_lite
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from camae.dataloader.backends.decoders import decode
from camae.dataloader.backends.zarr_planes import JUMP_LITE_CHANNELS, JUMP_LITE_KEY
from camae.dataloader.datasets.common import validated
from camae.dataloader.manifest import Manifest
from camae.errors import CamaeError, MissingFileError
from camae.text_table import as_text, column_names, read_arrow_table

INDEX = "jump_lite_site_index.parquet"
KEY = "Metadata_Site_Key"
RELEASE = "2026_jump_lite_v1.0"
RELEASED_SITES = 855_519
_PARTS = ("Metadata_Source", "Metadata_Batch", "Metadata_Plate", "Metadata_Well", "Metadata_Site")
_PUBLIC = "s3://cellpainting-gallery/cpg0016-jump/source_all"
_IMAGES = f"images/{RELEASE}/images_compressed"
# Below the index's folder and those above it: where the Gallery has the stores, where the plan's commands put them, and
# where drafts of the release had them.
_STORES = (
    _IMAGES,
    f"cpg0016-jump/source_all/{_IMAGES}",
    "images_compressed/jump_lite/v1.0",
    "images_compressed",
    "",
)
_INDICES = (
    "",
    "workspace/publication_data/2026_jump_lite/metadata/v1.0",
    "workspace/metadata/jump_lite/v1.0",
)
# Four original TIFFs are zero-filled, and so are their channels in every store
# (https://github.com/jump-cellpainting/datasets/issues/177): encoders refuse them, better now than after hours.
_ZERO_FILLED = {
    ("source_7", "CP3-SC1-18", "I22", "2"): "ER",
    ("source_7", "CP3-SC1-18", "I22", "3"): "DNA, Mito and RNA",
}
# Looked up one by one up to this many; beyond, one listing of the store is quicker.
_FEW = 4096


@dataclass(frozen=True)
class Variant:
    """Image variant of the release: its codec, which names the store, and the bytes of the whole store as published."""

    codec: str
    bytes: int

    @property
    def address(self) -> str:
        """Address of the store in the Cell Painting Gallery."""
        return f"{_PUBLIC}/{_IMAGES}/{self.codec}.zarr"


VARIANTS = {
    "zstd": Variant("zstd", 6_105_823_136_762),
    "hq": Variant("jpegxl_lossy_hq", 300_800_000_000),
    "mq": Variant("jpegxl_lossy_mq", 114_300_000_000),
    "d20": Variant("jpegxl_lossy_d20", 19_900_000_000),
}


def is_site_index(columns: Sequence[str]) -> bool:
    """Test for JUMP-lite's table of sites, by its column of keys."""
    return KEY in columns


def find_index(folder: Path) -> Path | None:
    """The site index of a copy of the release, at its places below a folder; None where there is none."""
    return next((path for place in _INDICES if (path := folder / place / INDEX).is_file()), None)


def bytes_of(address: str) -> float:
    """Mean size of one site's array in bytes, by the published size of its store; 0 for an address of another kind."""
    found = [v for v in VARIANTS.values() if address.startswith(v.address + "/")]
    return found[0].bytes / RELEASED_SITES if found else 0.0


def read(
    path: str | os.PathLike[str], incomplete: str = "error", variant: str | os.PathLike[str] | None = None
) -> Manifest:
    """Manifest of the sites of an index, with the columns Metadata_* that it has.

    path:       the index, or a folder with a copy of the release.
    incomplete: what to do about sites whose array is not in the store, and the two with channels of zeros (see
                `read_manifest`); under "keep" missing ones get their public address on S3.
    variant:    "zstd", "hq", "mq" or "d20", a codec's name, or the path of a store; None takes the only store there is.

    The store is looked for at its places in the Gallery's layout, in the index's folder and those above it. One
    listing of it says which sites are there; the metadata of one array alone are read, those of the others with their
    pixels. Raises CamaeError or MissingFileError with one sentence for keys that do not fit, sites that are there
    twice, an unknown variant, and a store or a package that is missing.
    """
    index = Path(path).absolute()
    if index.is_dir():
        found = find_index(index)
        if found is None:
            raise MissingFileError(f"{index}: holds no {INDEX}; name the index of JUMP-lite's sites")
        index = found
    table = _sites(index)
    store, address = _store(index, variant, incomplete)
    keys = table[KEY].tolist()
    here = set() if store is None else _present(store, keys)
    where = [
        f"{store.name}/{key}" if store is not None and key in here else f"{address}/{key}" for key in keys
    ]
    for number, channel in enumerate(JUMP_LITE_CHANNELS):
        table[channel] = [f"{place}#{number}" for place in where]
    what = address.rpartition("/")[2] if store is None else store.name
    reasons = ["" if key in here else f"array in {what}: no such file {key}" for key in keys]
    for row, zeros in _zero_filled(table):
        reasons[row] = reasons[row] or f"zeros alone in {zeros}, as in the original images"
    if here:
        first = next(key for key in keys if key in here)
        decode(f"{store}/{first}#0", sizes_only=True)
    root = index.parent if store is None else store.parent
    return validated(table, root, JUMP_LITE_CHANNELS, incomplete, pd.Series(reasons, dtype=object))


def _zero_filled(table: pd.DataFrame) -> list[tuple[int, str]]:
    """Rows of sites with zero-filled channels, and these channels."""
    rows = np.flatnonzero(table["Metadata_Plate"].isin([plate for _, plate, *_ in _ZERO_FILLED])).tolist()
    names = [name for name in _PARTS if name != "Metadata_Batch"]
    found = ((row, _ZERO_FILLED.get(tuple(table.loc[row, names]))) for row in rows)
    return [(row, zeros) for row, zeros in found if zeros is not None]


def _sites(index: Path) -> pd.DataFrame:
    """Metadata of the index as text, with a key for every site; addresses of the original TIFFs are left aside."""
    names = [name for name in column_names(index) if name.startswith("Metadata_")]
    if missing := [name for name in _PARTS if name not in names]:
        raise CamaeError(f"{index}: has no column {missing[0]}, so it is no site index of JUMP-lite")
    stored = read_arrow_table(index, names)
    table = pd.DataFrame({name: as_text(stored.column(name).to_pandas()) for name in names})
    made = table[_PARTS[0]].str.cat([table[name] for name in _PARTS[1:]], sep="__")
    if KEY not in table:
        table[KEY] = made
    for row, (key, parts) in enumerate(zip(table[KEY], made, strict=True)):
        if key != parts or not JUMP_LITE_KEY.fullmatch(key) or key.count("__") != 4:
            raise CamaeError(
                f"{index}, row {row}: the key {key!r} is not <source>__<batch>__<plate>__<well>__<site> of its row, "
                f"{parts!r}: mend the index"
            )
    again = table[KEY].duplicated()
    if again.any():
        raise CamaeError(f"{index}: the site {table.loc[again, KEY].iloc[0]} stands in two rows: remove one")
    return table


def _store(index: Path, variant: str | os.PathLike[str] | None, incomplete: str) -> tuple[Path | None, str]:
    """The store of a variant, None where it is not here, and its address for what is not in it.

    Raises CamaeError where it must be here and is not.
    """
    if variant is not None and Path(variant).suffix == ".zarr":
        store = Path(variant).absolute()
        if not store.is_dir():
            raise MissingFileError(f"{store}: no such store; name a folder of JUMP-lite's arrays as variant")
        known = [v for v in VARIANTS.values() if v.codec == store.stem]
        return store, known[0].address if known else store.name
    if variant is None:
        return _only_store(index)
    known = [v for name, v in VARIANTS.items() if variant in (name, v.codec)]
    if not known:
        raise CamaeError(
            f"variant {str(variant)!r} is not one of {', '.join(VARIANTS)}, nor the path of a store"
        )
    found = _find(index, known[0])
    if found is None and incomplete != "keep":
        raise MissingFileError(
            f"{index}: {known[0].codec}.zarr is neither beside it nor at its place in the Gallery's folders; name its "
            "path as variant, or fetch it: camae data plan prints the commands"
        )
    return found, known[0].address


def _only_store(index: Path) -> tuple[Path, str]:
    found = {name: store for name, v in VARIANTS.items() if (store := _find(index, v)) is not None}
    if len(found) != 1:
        there = f"{' and '.join(found)} are here" if found else "no store is here"
        raise CamaeError(
            f"{index}: {there}; say which with variant ({', '.join(VARIANTS)}, or the path of a store)"
        )
    name, store = next(iter(found.items()))
    return store, VARIANTS[name].address


def _find(index: Path, variant: Variant) -> Path | None:
    places = (folder / place / f"{variant.codec}.zarr" for folder in index.parents[:7] for place in _STORES)
    return next((place for place in places if place.is_dir()), None)


def _present(store: Path, keys: Sequence[str]) -> set[str]:
    """Keys of the arrays that are in a store."""
    if len(keys) > _FEW:
        with os.scandir(store) as entries:
            return {entry.name for entry in entries}.intersection(keys)
    return {key for key in keys if (store / key).is_dir()}
