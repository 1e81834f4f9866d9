"""Dataset reader of OME-Zarr: high-content-screening plates and multiscale images, at full resolution.

A plane's address is the array's path with its leading indices, e.g. `plate.zarr/B/03/0/0#0,2,0` for axes t, c, z.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import TypedDict, cast

import pandas as pd

from camae.dataloader.datasets.common import normal_well, validated
from camae.dataloader.manifest import Manifest
from camae.dataloader.optional_module import optional_module
from camae.errors import CamaeError


class _Located(TypedDict):
    path: str


class _Axis(TypedDict):
    name: str


class _Multiscale(TypedDict, total=False):
    axes: list[_Axis | str]  # objects since version 0.4, letters in 0.3, absent before
    datasets: list[_Located]  # full resolution first


class _Plate(TypedDict):
    wells: list[_Located]


class _Well(TypedDict):
    images: list[_Located]


class _Channel(TypedDict, total=False):
    label: str


class _Omero(TypedDict, total=False):
    channels: list[_Channel]


class _Metadata(TypedDict, total=False):
    """OME metadata of a Zarr group (https://ngff.openmicroscopy.org), as far as it is read here."""

    plate: _Plate
    well: _Well
    multiscales: list[_Multiscale]
    omero: _Omero


def _zarr() -> ModuleType:
    return optional_module("zarr", "OME-Zarr")


def stores(root: Path) -> list[Path]:
    """Zarr stores: `root` itself or the `*.zarr` folders directly in it."""
    return [root] if root.suffix == ".zarr" else sorted(p for p in root.glob("*.zarr") if p.is_dir())


def looks_like(root: Path) -> bool:
    """Format test: the folder is or holds an OME-Zarr store (one with `plate` or `multiscales` metadata)."""
    return any({"plate", "multiscales"} & _metadata(path).keys() for path in stores(root)[:1])


def _metadata(path: Path) -> _Metadata:
    """OME metadata of a group, from either place the versions of the format keep it; {} where it is no group."""
    try:
        attributes = dict(_zarr().open_group(str(path), mode="r").attrs)
    except (FileNotFoundError, ValueError, KeyError):
        return {}
    ome = attributes.get("ome", attributes)
    return cast(_Metadata, ome) if isinstance(ome, dict) else {}


def read(path: str | os.PathLike[str], incomplete: str = "error") -> Manifest:
    """Manifest of every field of every store under `path`; plate = the store's name, site = the field's number.

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
    return validated(table, root.parent if root.suffix == ".zarr" else root, channels, incomplete)


def _fields(store: Path) -> list[tuple[str, str, Path]]:
    """(well, site, path of the multiscale image) of a store."""
    about = _metadata(store)
    if "plate" not in about:
        return [("", "1", store)] if "multiscales" in about else []
    found = []
    for well in about["plate"]["wells"]:
        folder = store / well["path"]
        name = normal_well(well["path"].replace("/", ""))
        for number, image in enumerate(_metadata(folder)["well"]["images"], start=1):
            found.append((name, str(number), folder / image["path"]))
    return found


def _planes(image: Path) -> tuple[list[str], list[tuple[Path, str]]]:
    """Channel names and, for each, the full-resolution array and its leading indices."""
    about = _metadata(image)
    if "multiscales" not in about:
        raise CamaeError(f"{image}: has no multiscales metadata")
    scale = about["multiscales"][0]
    array_path = image / scale["datasets"][0]["path"]
    shape = _zarr().open_array(str(array_path), mode="r").shape
    axes = [a if isinstance(a, str) else a["name"] for a in scale.get("axes", list("tczyx"[-len(shape) :]))]
    for axis, size in zip(axes, shape, strict=True):
        if axis in "tz" and size > 1:
            raise CamaeError(f"{array_path}: has {size} planes along {axis}: project them to one first")
    count = shape[axes.index("c")] if "c" in axes else 1
    labels = [c.get("label") or str(i) for i, c in enumerate(about.get("omero", {}).get("channels", []))]
    names = labels if len(labels) == count else [str(i) for i in range(count)]
    indices = [",".join(str(c if a == "c" else 0) for a in axes[:-2]) for c in range(count)]
    return names, [(array_path, index) for index in indices]
