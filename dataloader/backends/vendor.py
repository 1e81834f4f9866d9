"""Vendor formats (CZI, ND2, LIF) through bioio: scenes of a file, and their planes read one by one.

A plane's address is `file.czi#scene,t,c,z`. Needs the extra `formats`; imported at first need.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from camae.dataloader.optional_module import optional_module
from camae.errors import CamaeError

SUFFIXES = (".czi", ".nd2", ".lif")
_MOST_OPEN = 4  # files held open by one thread
# What bioio calls a channel that has no name.
_NO_NAME = re.compile(r"Channel[: ]\d+(?::\d+)*|\d+")
_open = threading.local()


class Scene(NamedTuple):
    """Scene of a file: sizes by "T", "C", "Z", the axes in the file's order, and channel names ("" for none)."""

    sizes: dict[str, int]
    order: str
    channels: tuple[str, ...]


class _Dimensions(Protocol):
    order: str

    def __getitem__(self, axis: str) -> Sequence[int]: ...


class _Array(Protocol):
    def compute(self) -> np.ndarray: ...


class _Image(Protocol):
    """bioio.BioImage, as far as it is used here."""

    scenes: Sequence[str]
    dims: _Dimensions
    channel_names: Sequence[str] | None
    dtype: np.dtype[np.generic]

    def set_scene(self, scene: int) -> None: ...

    def get_image_dask_data(self, order: str, **at: int) -> _Array: ...


def is_vendor(path: str) -> bool:
    """Test for the suffix of a format that bioio reads here."""
    return path.lower().endswith(SUFFIXES)


def _image(path: str) -> _Image:
    """A file of this thread's: bioio's readers keep a state, the scene."""
    kind = os.path.splitext(path)[1][1:].lower()
    for module in (f"bioio_{kind}", "bioio"):
        bioio = optional_module(
            module, f"{path}: {kind.upper()}", f"bioio-{kind} (pip install 'camae[formats]')"
        )
    held: dict[tuple[str, int], _Image] = _open.__dict__.setdefault("images", {})
    key = path, os.stat(path).st_mtime_ns
    if key not in held:
        while len(held) >= _MOST_OPEN:
            del held[next(iter(held))]
        held[key] = bioio.BioImage(path)
    return held[key]


def scenes(path: str) -> list[Scene]:
    """Scenes of a file, in order. Raises MissingBackendError without bioio, CamaeError for color and mosaics."""
    try:
        image = _image(path)
        return [_scene(image, number, path) for number in range(len(image.scenes))]
    except (CamaeError, FileNotFoundError):
        raise
    except Exception as error:  # readers of vendors' formats raise anything; the user needs one sentence
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CamaeError(f"{path}: cannot be read by bioio ({reason[:200]})") from None


def _scene(image: _Image, number: int, path: str) -> Scene:
    image.set_scene(number)
    order = image.dims.order
    sizes = {axis: int(image.dims[axis][0]) for axis in order}
    odd = [axis for axis in order if axis not in "TCZYX" and sizes[axis] > 1]
    if odd:
        what = {"S": "samples per pixel (color)", "M": "mosaic tiles"}.get(odd[0], f"planes along {odd[0]}")
        raise CamaeError(
            f"{path}: has {sizes[odd[0]]} {what} in scene {number}, where gray planes are meant: export it as OME-TIFF"
        )
    n = sizes.get("C", 1)
    names = [str(name) for name in image.channel_names or ()]
    channels = tuple("" if _NO_NAME.fullmatch(name) else name for name in names)
    return Scene({a: sizes.get(a, 1) for a in "TCZ"}, order, channels if len(channels) == n else ("",) * n)


def read_plane(path: str, index: tuple[int, ...], sizes_only: bool) -> np.ndarray:
    """Plane (H, W) at (scene, t, c, z). Raises CamaeError for another index, MissingBackendError without bioio."""
    image = _image(path)
    if len(index) != 4:
        raise CamaeError(
            f"{path}: a plane is named by scene, time point, channel and z, as in {path}#0,0,0,0"
        )
    scene, *at = index
    if scene >= len(image.scenes):
        raise CamaeError(f"{path}: has no scene {scene}: it has {len(image.scenes)}")
    image.set_scene(scene)
    sizes = {axis: int(image.dims[axis][0]) for axis in image.dims.order}
    for axis, number in zip("TCZ", at, strict=True):
        if number >= sizes.get(axis, 1):
            raise CamaeError(f"{path}: has no plane {number} along {axis}: it has {sizes.get(axis, 1)}")
    if sizes_only:
        return np.empty((sizes["Y"], sizes["X"]), image.dtype)
    chosen = {axis: number for axis, number in zip("TCZ", at, strict=True) if axis in sizes}
    return np.asarray(image.get_image_dask_data("YX", **chosen).compute())
