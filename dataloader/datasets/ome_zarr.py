"""OME-Zarr: high-content-screening plates and single multiscale images, at full resolution, through zarr.

A plane's address is the array's path with its leading indices, e.g. `plate.zarr/B/03/0/0#0,2,0` for axes t, c, z.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd

from camae.dataloader.datasets.common import finish, normal_well
from camae.dataloader.manifest import Manifest
from camae.errors import CamaeError, MissingBackendError


def _zarr() -> Any:
    try:
        import zarr
    except ImportError:
        raise MissingBackendError("OME-Zarr needs the package zarr, which is not installed") from None
    return zarr


def stores(root: Path) -> list[Path]:
    """`root` itself or the `*.zarr` folders directly in it."""
    return [root] if root.suffix == ".zarr" else sorted(p for p in root.glob("*.zarr") if p.is_dir())


def looks_like(root: Path) -> bool:
    """Whether the folder is or holds an OME-Zarr store (one with `plate` or `multiscales` metadata)."""
    return any(_about(path) for path in stores(root)[:1]) if stores(root) else False


def _about(path: Path) -> dict[str, Any]:
    """The OME metadata of a group, from either place the versions of the format keep it; {} where there is none."""
    try:
        attributes = dict(_zarr().open_group(str(path), mode="r").attrs)
    except (FileNotFoundError, ValueError, KeyError):
        return {}
    ome = attributes.get("ome", attributes)
    return ome if isinstance(ome, dict) and ("plate" in ome or "multiscales" in ome) else {}


def read(path: str | os.PathLike[str], incomplete: str = "error") -> Manifest:
    """A manifest of every field of every store under `path`; plate = the store's name, site = the field's number.

    Channel names come from the `omero` metadata, else "0", "1", ... Raises CamaeError for fields with several
    z planes or time points, which a plane-wise manifest cannot choose from.
    """
    root = Path(path).absolute()
    rows, channels = [], []
    for store in stores(root):
        for well, site, image in _fields(store):
            names, planes = _planes(image)
            channels += [n for n in names if n not in channels]
            base = root.parent if root.suffix == ".zarr" else root
            rows.append(
                {
                    "Metadata_Plate": store.name.removesuffix(".zarr"),
                    "Metadata_Well": well,
                    "Metadata_Site": site,
                }
                | {
                    n: f"{p.relative_to(base).as_posix()}#{index}"
                    for n, (p, index) in zip(names, planes, strict=True)
                }
            )
    if not rows:
        raise CamaeError(f"{root}: holds no OME-Zarr plate or image")
    table = pd.DataFrame(rows, dtype=object).fillna("")
    return finish(table, root.parent if root.suffix == ".zarr" else root, channels, incomplete)


def _fields(store: Path) -> list[tuple[str, str, Path]]:
    """(well, site, path of the multiscale image) of a store."""
    about = _about(store)
    if "plate" not in about:
        return [("", "1", store)] if about else []
    found = []
    for well in about["plate"]["wells"]:
        folder = store / well["path"]
        name = normal_well(well["path"].replace("/", ""))
        attributes = dict(_zarr().open_group(str(folder), mode="r").attrs)
        for number, image in enumerate(attributes.get("ome", attributes)["well"]["images"], start=1):
            found.append((name, str(number), folder / image["path"]))
    return found


def _planes(image: Path) -> tuple[list[str], list[tuple[Path, str]]]:
    """Channel names and, for each, the full-resolution array and its leading indices."""
    about = _about(image)
    if "multiscales" not in about:
        raise CamaeError(f"{image}: has no multiscales metadata")
    scale = about["multiscales"][0]
    array_path = image / scale["datasets"][0]["path"]
    shape = _zarr().open_array(str(array_path), mode="r").shape
    axes = [a["name"] if isinstance(a, dict) else a for a in scale.get("axes", "tczyx"[-len(shape) :])]
    for axis, size in zip(axes, shape, strict=True):
        if axis in "tz" and size > 1:
            raise CamaeError(f"{array_path}: has {size} planes along {axis}: project them to one first")
    count = shape[axes.index("c")] if "c" in axes else 1
    labels = [c.get("label") or str(i) for i, c in enumerate(about.get("omero", {}).get("channels", []))]
    names = labels if len(labels) == count else [str(i) for i in range(count)]
    indices = [",".join(str(c if a == "c" else 0) for a in axes[:-2]) for c in range(count)]
    return names, [(array_path, index) for index in indices]
