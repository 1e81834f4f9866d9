"""Axes of the images in a file: what its pages are, by OME, ImageJ, tifffile or a vendor's metadata; headers alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from camae.dataloader.backends import native, vendor
from camae.dataloader.backends.addresses import is_tiff
from camae.dataloader.datasets.ome_xml import images_of_ome
from camae.errors import CamaeError

_AXES = "TCZ"


@dataclass(frozen=True)
class ImageAxes:
    """Axes of one image (field) of a file.

    axes:      those longer than 1, slowest first, and YX: "ZCYX"; "PYX" for pages that no metadata explains.
    pages_TCZ: page of every plane, (time points, channels, z planes) int64, unexplained pages stand as channels; of a
               Zarr array its leading indices as text, "0,2,0".
    channels:  names, "" for a channel without one.
    field:     (plate, well, site) where the file says it.
    """

    axes: str
    pages_TCZ: npt.NDArray[np.int64] | npt.NDArray[np.object_]
    channels: tuple[str, ...]
    field: tuple[str, str, str] | None = None

    @property
    def explained(self) -> bool:
        """Whether the file says what its pages are."""
        return "P" not in self.axes

    @property
    def is_page(self) -> bool:
        """Whether the file is one plane, whose address needs no page."""
        return self.pages_TCZ.size == 1 and self.pages_TCZ.dtype != object and not self.pages_TCZ.any()


def has_pages(path: str) -> bool:
    """Whether a file has several pages, by its header. False for what cannot be read: reading it says why."""
    try:
        return vendor.is_vendor(path) or (is_tiff(path) and native.describe(path, any_reader=True).pages > 1)
    except CamaeError:
        return False


def holds_channels(path: str) -> bool:
    """Whether a file's metadata say that it holds several channels. False for what cannot be read."""
    try:
        return has_pages(path) and any(i.explained and len(i.channels) > 1 for i in images_in(path))
    except CamaeError:
        return False


def images_in(path: str) -> list[ImageAxes]:
    """Images of a file, in order; PNG and JPEG 2000 hold one plane. An OME-TIFF may hold none of those it lists.

    Raises MissingFileError or CamaeError naming the file, also for color images and metadata that contradict it.
    """
    if vendor.is_vendor(path):
        return [_of_scene(number, scene) for number, scene in enumerate(vendor.scenes(path))]
    if not is_tiff(path):
        return [_flat(1)]
    layout = native.describe(path, any_reader=True)
    if layout.planes != layout.pages:
        raise CamaeError(
            f"{path}: has {layout.planes // layout.pages} samples per pixel (color, or channels side by side) where "
            "gray planes are meant: write each channel as a page of its own"
        )
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            ome = file.ome_metadata if file.is_ome else None
            imagej, shaped = file.imagej_metadata, file.shaped_metadata
    except Exception as error:  # tifffile raises anything on damaged metadata; the user needs one sentence
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CamaeError(f"{path}: its metadata cannot be read ({reason[:200]})") from None
    if ome is not None:
        return [
            ImageAxes(image.axes, image.pages_TCZ, image.channels, image.field)
            for image in images_of_ome(ome, path, layout.pages)
        ]
    if imagej:
        return [_of_imagej(imagej, path, layout.pages)]
    found = _of_shape(shaped[0], layout.pages) if shaped else None
    return [found or _flat(layout.pages)]


def _of_scene(number: int, scene: vendor.Scene) -> ImageAxes:
    """Axes of a scene of a vendor's file; addresses are (scene, t, c, z)."""
    indices_TCZ = np.empty([scene.sizes[axis] for axis in _AXES], dtype=object)
    for index in np.ndindex(indices_TCZ.shape):
        indices_TCZ[index] = ",".join(map(str, (number, *index)))
    axes = "".join(a for a in scene.order if a in _AXES and scene.sizes[a] > 1) + "YX"
    return ImageAxes(axes, indices_TCZ, scene.channels)


def _flat(pages: int) -> ImageAxes:
    numbers = np.arange(pages).reshape(1, pages, 1)
    return ImageAxes("PYX" if pages > 1 else "YX", numbers, ("",) * pages)


def _arranged(order: str, sizes: Mapping[str, int]) -> tuple[str, npt.NDArray[np.int64]]:
    """(axes, pages_TCZ) of pages in order, the axes of `order` slowest first."""
    numbers = np.arange(np.prod([sizes[a] for a in order], dtype=int)).reshape([sizes[a] for a in order])
    axes = "".join(a for a in order if sizes[a] > 1) + "YX"
    return axes, np.ascontiguousarray(numbers.transpose([order.index(a) for a in _AXES]))


def _of_imagej(about: Mapping[str, object], path: str, pages: int) -> ImageAxes:
    """ImageJ keeps hyperstacks in the order TZC, and may keep names of channels as labels of the slices."""
    sizes = {
        axis: _count(about.get(key))
        for axis, key in zip("TZC", ("frames", "slices", "channels"), strict=True)
    }
    planes = sizes["T"] * sizes["Z"] * sizes["C"]
    claimed = max(planes, _count(about.get("images")))
    if claimed != pages:
        raise CamaeError(
            f"{path}: its ImageJ description says {claimed:,} planes, and the file has {pages:,} pages: save it again"
        )
    if planes != pages:
        return _flat(pages)
    axes, numbers = _arranged("TZC", sizes)
    labels = about.get("Labels")
    names = ("",) * sizes["C"]
    if isinstance(labels, list) and len(labels) == pages:
        of_plane = np.array([str(label or "").strip() for label in labels], dtype=object)[numbers]
        # A label that changes along z or time names a slice, not a channel.
        if (of_plane == of_plane[:1, :, :1]).all():
            names = tuple(of_plane[0, :, 0].tolist())
    return ImageAxes(axes, numbers, names)


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 1


def _of_shape(about: Mapping[str, object], pages: int) -> ImageAxes | None:
    """Axes that tifffile wrote with the array's shape, None where they do not name every page."""
    axes, shape = about.get("axes"), about.get("shape")
    if not isinstance(axes, str) or not isinstance(shape, (list, tuple)) or len(axes) != len(shape):
        return None
    leading, lengths = axes[:-2], shape[:-2]
    known = axes.endswith("YX") and set(leading) <= set(_AXES) and len(set(leading)) == len(leading)
    if not known or not all(isinstance(n, int) and n > 0 for n in lengths):
        return None
    sizes = dict.fromkeys(_AXES, 1) | dict(zip(leading, lengths, strict=True))
    if np.prod(list(sizes.values()), dtype=object) != pages:
        return None
    order = "".join(a for a in _AXES if a not in leading) + leading
    named, numbers = _arranged(order, sizes)
    return ImageAxes(named, numbers, ("",) * sizes["C"])
