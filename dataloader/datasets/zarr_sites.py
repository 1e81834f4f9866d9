"""Dataset reader of a Zarr array (site, channel, y, x) with two tables beside it: sites.csv and channels.csv.

The layout in which small subsets of JUMP are shared. `sites.csv` has idx and Source, Batch, Plate, Well, Site;
`channels.csv` has idx and channel; idx counts along the array's first two axes.
"""

from __future__ import annotations

import os
from pathlib import Path

from camae.dataloader.datasets.common import normal_well, validated
from camae.dataloader.manifest import Manifest
from camae.dataloader.optional_module import optional_module
from camae.errors import CamaeError
from camae.text_table import read_text_table

_CANONICAL = {name.lower(): name for name in ("Source", "Batch", "Plate", "Well", "Site")}


def looks_like(root: Path) -> bool:
    """Format test: the folder holds both tables and a store."""
    return all((root / f"{name}.csv").is_file() for name in ("sites", "channels")) and any(
        root.glob("*.zarr")
    )


def read(path: str | os.PathLike[str], incomplete: str = "error") -> Manifest:
    """Manifest of every site; other columns of sites.csv are kept as metadata.

    Raises CamaeError when the store does not hold one array as large as the tables say.
    """
    root = Path(path).absolute()
    sites, channels = read_text_table(root / "sites.csv"), read_text_table(root / "channels.csv")
    for name, table, column in (
        ("sites", sites, "idx"),
        ("channels", channels, "idx"),
        ("channels", channels, "channel"),
    ):
        if column not in table:
            raise CamaeError(f"{root / name}.csv: has no column {column}")
    address, shape = _array(root)
    for axis, (name, table) in enumerate((("sites", sites), ("channels", channels))):
        numbers = sorted(int(i) if i.isdigit() else -1 for i in table["idx"])
        if not numbers or numbers[0] < 0 or numbers[-1] >= shape[axis] or len(set(numbers)) < len(numbers):
            raise CamaeError(
                f"{root / name}.csv: idx does not count along axis {axis} of {address}, which has {shape[axis]}"
            )
    table = sites.drop(columns="idx").rename(
        columns=lambda c: f"Metadata_{_CANONICAL.get(c.removeprefix('Metadata_').lower(), c)}"
    )
    if "Metadata_Well" in table:
        table["Metadata_Well"] = [normal_well(well) for well in table["Metadata_Well"]]
    for index, channel in zip(channels["idx"], channels["channel"], strict=True):
        table[channel] = [f"{address}#{site},{index}" for site in sites["idx"]]
    return validated(table, root, list(channels["channel"]), incomplete)


def _array(root: Path) -> tuple[str, tuple[int, ...]]:
    """Path relative to `root` and shape of the one array (site, channel, y, x)."""
    zarr = optional_module("zarr", f"{root}: Zarr")
    found = []
    for store in sorted(root.glob("*.zarr")):
        opened = zarr.open(str(store), mode="r")
        arrays = [("", opened)] if isinstance(opened, zarr.Array) else list(opened.arrays())
        found += [(f"{store.name}/{name}".rstrip("/"), tuple(a.shape)) for name, a in arrays if a.ndim == 4]
    if len(found) != 1:
        raise CamaeError(f"{root}: holds {len(found)} arrays (site, channel, y, x) where sites.csv means one")
    return found[0]
