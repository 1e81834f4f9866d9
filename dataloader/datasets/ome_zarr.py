"""Dataset reader of OME-Zarr: high-content-screening plates, multiscale images and bioformats2raw's series of them.

Images are read at full resolution. A plane's address is the array's path with its leading indices, e.g.
`plate.zarr/B/03/0/0#0,2,0` for axes t, c, z.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypedDict, cast

import numpy as np
import pandas as pd

from camae.dataloader.backends.zarr_guard import METADATA_FILES, check_metadata_size
from camae.dataloader.datasets import stacks
from camae.dataloader.datasets.common import unique, validated
from camae.dataloader.datasets.stacks import Choice
from camae.dataloader.datasets.tiff_axes import ImageAxes
from camae.dataloader.manifest import Manifest
from camae.dataloader.optional_module import optional_module
from camae.errors import CamaeError
from camae.omissions import Omissions

if TYPE_CHECKING:
    import zarr

    from camae.dataloader.backends.zarr_guard import ZarrArray


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


# Keys that are no Python names need this form.
_Layout = TypedDict("_Layout", {"bioformats2raw.layout": int}, total=False)


class _Metadata(_Layout, total=False):
    """OME metadata of a Zarr group (https://ngff.openmicroscopy.org), as far as it is read here."""

    plate: _Plate
    well: _Well
    multiscales: list[_Multiscale]
    omero: _Omero
    series: list[str]


_MOST_PLANES = 1_000_000
_KINDS = {"plate", "multiscales", "bioformats2raw.layout"}
# What metadata of another shape than the format's raises where it is used.
_DAMAGED = (KeyError, TypeError, AttributeError, IndexError, ValueError, RecursionError)
Field = tuple[str, str, Path]  # well, site, multiscale image


def stores(root: Path) -> list[Path]:
    """Zarr stores: `root` itself or the `*.zarr` folders directly in it."""
    if root.suffix.lower() == ".zarr":
        return [root]
    return sorted(p for p in root.iterdir() if p.suffix.lower() == ".zarr" and p.is_dir())


def open_zarr(path: Path) -> tuple[ModuleType, zarr.Group | ZarrArray]:
    """The module zarr, and the group or array at a path. Raises CamaeError when it cannot be opened."""
    module = optional_module("zarr", f"{path}: Zarr")
    check_metadata_size(path)
    try:
        return module, module.open(str(path), mode="r")
    except Exception as error:  # zarr raises anything on damaged metadata; the user needs one sentence
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CamaeError(f"{path}: cannot be opened as Zarr ({reason[:200]})") from None


def looks_like(root: Path) -> bool:
    """Format test: the folder is or holds an OME-Zarr store (a plate, an image or a bioformats2raw layout)."""
    return any(_KINDS & _metadata(path).keys() for path in stores(root)[:1])


def _metadata(path: Path) -> _Metadata:
    """OME metadata of a group, from either place the versions of the format keep it; {} where it is no group."""
    if not any((path / name).is_file() for name in METADATA_FILES):
        return {}
    module, opened = open_zarr(path)
    if isinstance(opened, module.Array):
        return {}
    attributes = dict(opened.attrs)
    ome = attributes.get("ome", attributes)
    return cast(_Metadata, ome) if isinstance(ome, dict) else {}


def read(path: str | os.PathLike[str], incomplete: str = "error", choice: Choice | None = None) -> Manifest:
    """Manifest of every field of every store under `path`; plate = the store's name, site = the field's number.

    Channel names come from the `omero` metadata, else from `choice`, else "0", "1", ... Wells and images that a plate
    lists without their folder are incomplete (see `read_manifest`). Raises CamaeError for damaged metadata, and for
    fields with several z planes or time points without a choice.
    """
    choice = choice or Choice()
    root = Path(path).absolute()
    base = root.parent if root.suffix.lower() == ".zarr" else root
    rows: list[dict[str, str]] = []
    channels: list[str] = []
    left_out = Omissions()
    for store in stores(root):
        try:
            for well, site, image in _fields(store, incomplete, left_out):
                array, axes = _planes(image, choice)
                channels += axes.channels
                place = {
                    "Metadata_Plate": store.name[: -len(".zarr")],
                    "Metadata_Well": well,
                    "Metadata_Site": site,
                }
                for moment in stacks.moments(axes, array.relative_to(base).as_posix(), choice, str(array)):
                    time = {"Metadata_Time": moment.time} if moment.time else {}
                    rows.append(place | time | moment.planes)
        except _DAMAGED as error:
            if isinstance(error, CamaeError):
                raise
            raise CamaeError(
                f"{store}: its OME metadata is damaged ({type(error).__name__}: {error})"
            ) from None
    if not rows:
        raise CamaeError(f"{root}: holds no OME-Zarr plate or image")
    table = pd.DataFrame(rows, dtype=object).fillna("")
    return validated(table, base, unique(channels), incomplete, left_out=left_out)


def _fields(store: Path, incomplete: str, left_out: Omissions) -> Iterator[Field]:
    """Every image of a store; what a plate lists without its folder is noted, or refused."""
    about = _metadata(store)
    if "plate" in about:
        yield from _wells(store, about["plate"], incomplete, left_out)
    elif "multiscales" in about:
        yield "", "1", store
    elif "bioformats2raw.layout" in about:
        series = _metadata(store / "OME").get("series") or _numbered(store)
        for number, name in enumerate(series, start=1):
            yield "", str(number), store / name
    else:
        left_out.add("store", store.name, "it has neither plate nor image metadata")


def _numbered(store: Path) -> list[str]:
    return [str(n) for n in sorted(int(p.name) for p in store.iterdir() if p.name.isdecimal())]


def _wells(store: Path, plate: _Plate, incomplete: str, left_out: Omissions) -> Iterator[Field]:
    for well in plate["wells"]:
        folder = store / well["path"]
        about = _metadata(folder)
        images = about["well"]["images"] if about else []
        if not about:
            _absent("well", folder, incomplete, left_out)
        for number, image in enumerate(images, start=1):
            if (folder / image["path"]).is_dir():
                yield well["path"].replace("/", ""), str(number), folder / image["path"]
            else:
                _absent("site", folder / image["path"], incomplete, left_out)


def _absent(kind: str, folder: Path, incomplete: str, left_out: Omissions) -> None:
    if incomplete == "error":
        raise CamaeError(
            f"{folder}: the plate lists this {kind}, but it is not there; pass incomplete='skip' (--incomplete "
            "skip) to leave it out"
        )
    left_out.add(kind, folder, "the plate lists it, but it is not there")


def _planes(image: Path, choice: Choice) -> tuple[Path, ImageAxes]:
    """The full-resolution array, and the leading indices of its planes by time point, channel and z."""
    about = _metadata(image)
    if "multiscales" not in about:
        raise CamaeError(f"{image}: has no multiscales metadata")
    scale = about["multiscales"][0]
    array_path = image / scale["datasets"][0]["path"]
    module, array = open_zarr(array_path)
    if not isinstance(array, module.Array):
        raise CamaeError(f"{array_path}: is no array, and the image's metadata says it is")
    shape = array.shape
    axes = [a if isinstance(a, str) else a["name"] for a in scale.get("axes", list("tczyx"[-len(shape) :]))]
    if len(axes) != len(shape) or axes[-2:] != ["y", "x"] or len(set(axes)) < len(axes):
        raise CamaeError(f"{array_path}: its axes {axes} do not fit its shape {shape}, or do not end in y, x")
    sizes = dict(zip(axes, shape, strict=True))
    for axis in axes[:-2]:
        if axis not in ("t", "c", "z") and sizes[axis] > 1:
            raise CamaeError(
                f"{array_path}: has {sizes[axis]} planes along {axis}, which is no axis of OME-Zarr"
            )
    n_T, n_C, n_Z = (int(sizes.get(axis, 1)) for axis in "tcz")
    if n_C > 1000 or n_T * n_C * n_Z > _MOST_PLANES:
        raise CamaeError(
            f"{array_path}: claims {n_C:,} channels of {n_T * n_Z:,} planes: its metadata is damaged"
        )
    labels = [str(c.get("label") or i) for i, c in enumerate(about.get("omero", {}).get("channels", []))]
    indices_TCZ = np.empty((n_T, n_C, n_Z), dtype=object)
    for t, c, z in np.ndindex(indices_TCZ.shape):
        at = {"t": t, "c": c, "z": z}
        indices_TCZ[t, c, z] = ",".join(str(at.get(axis, 0)) for axis in axes[:-2])
    found = ImageAxes("".join(a for a in axes if sizes[a] > 1 or a in "yx").upper(), indices_TCZ, ("",) * n_C)
    if len(labels) == n_C:
        found, choice = replace(found, channels=tuple(labels)), replace(choice, rename=False)
    elif not choice.channels:
        return array_path, replace(found, channels=tuple(map(str, range(n_C))))
    if len(set(labels)) < len(labels) == n_C:
        raise CamaeError(f"{image}: two of its channels have one label, {', '.join(labels)}: rename one")
    return array_path, stacks.explained(found, str(image), choice)
