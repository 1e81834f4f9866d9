"""Dataset reader of a Zarr array (site, channel, y, x) with two tables beside it: sites.csv and channels.csv.

The layout in which small subsets of JUMP are shared. `sites.csv` has idx and Source, Batch, Plate, Well, Site;
`channels.csv` has idx and channel; idx counts along the array's first two axes.
"""

from __future__ import annotations

import os
from pathlib import Path

from camae.dataloader.datasets.common import table_named, validated
from camae.dataloader.datasets.ome_zarr import open_zarr, stores
from camae.dataloader.manifest import Manifest
from camae.errors import CamaeError
from camae.omissions import Omissions
from camae.text_table import read_text_table

_CANONICAL = {name.lower(): name for name in ("Source", "Batch", "Plate", "Well", "Site")}


def looks_like(root: Path) -> bool:
    """Format test: the folder holds both tables and a store."""
    return all(table_named(root, name) for name in ("sites", "channels")) and bool(stores(root))


def read(path: str | os.PathLike[str], incomplete: str = "error") -> Manifest:
    """Manifest of every site; other columns of sites.csv are kept as metadata.

    Raises CamaeError when the store does not hold one array as large as the tables say.
    """
    root = Path(path).absolute()
    files = [table_named(root, "sites"), table_named(root, "channels")]
    if None in files:
        raise CamaeError(f"{root}: holds no {'sites' if files[0] is None else 'channels'}.csv")
    sites, channels = (read_text_table(file) for file in files if file is not None)
    for file, table, column in (
        (files[0], sites, "idx"),
        (files[1], channels, "idx"),
        (files[1], channels, "channel"),
    ):
        if column not in table:
            raise CamaeError(f"{file}: has no column {column}")
    address, shape = _array(root)
    left_out = Omissions()
    for axis, (file, kind, table) in enumerate(
        zip(files, ("site", "channel"), (sites, channels), strict=True)
    ):
        numbers = sorted(int(i) if i.isdecimal() and len(i) < 10 else -1 for i in table["idx"])
        if not numbers or numbers[0] < 0 or numbers[-1] >= shape[axis] or len(set(numbers)) < len(numbers):
            raise CamaeError(
                f"{file}: idx does not count along axis {axis} of {address}, which has {shape[axis]}"
            )
        for number in sorted(set(range(min(shape[axis], 10**6))) - set(numbers)):
            left_out.add(kind, f"{address}#{number}", f"{kind}s.csv does not list it")
    table = sites.drop(columns="idx").rename(
        columns=lambda c: f"Metadata_{_CANONICAL.get(c.removeprefix('Metadata_').lower(), c)}"
    )
    for index, channel in zip(channels["idx"], channels["channel"], strict=True):
        if channel in table or not channel:
            raise CamaeError(f"{files[1]}: the channel name {channel!r} stands twice or is empty")
        table[channel] = [f"{address}#{int(site)},{int(index)}" for site in sites["idx"]]
    return validated(table, root, list(channels["channel"]), incomplete, left_out=left_out)


def _array(root: Path) -> tuple[str, tuple[int, ...]]:
    """Path relative to `root` and shape of the one array (site, channel, y, x)."""
    found = []
    for store in stores(root):
        _, opened = open_zarr(store)
        shapes = {"": opened.shape} if hasattr(opened, "shape") else {n: a.shape for n, a in opened.arrays()}
        found += [
            (f"{store.name}/{name}".rstrip("/"), shape) for name, shape in shapes.items() if len(shape) == 4
        ]
    if len(found) != 1:
        raise CamaeError(f"{root}: holds {len(found)} arrays (site, channel, y, x) where sites.csv means one")
    return found[0]
