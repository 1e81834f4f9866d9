"""OME-XML of a TIFF: for each of its images the pages, channel names and place on a plate (ome-xml 2016-06)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from camae.errors import CamaeError
from camae.wells import row_name

_MOST_PLANES = 1_000_000
Field = tuple[str, str, str]


class OmeImage(NamedTuple):
    """One image: axes ("ZCYX", those longer than 1), pages_TCZ, channel names ("" for none), (plate, well, site)."""

    axes: str
    pages_TCZ: npt.NDArray[np.int64]
    channels: tuple[str, ...]
    field: Field | None


def images_of_ome(xml: str, path: str, pages: int) -> list[OmeImage]:
    """Images whose planes are in this file; those that the description places in other files are not.

    pages: of the file. Raises CamaeError naming the file for XML that is damaged or does not fit it.
    """
    # The schema has no entities: those of a hostile file may expand to gigabytes.
    if re.search(r"<!(?:DOCTYPE|ENTITY)", xml):
        raise CamaeError(f"{path}: its OME description declares a document type, which OME-XML has not")
    try:
        root = ElementTree.fromstring(xml)
        fields = _fields(root)
        found = [_image(image, path, pages, fields.get(image.get("ID", ""))) for image in _all(root, "Image")]
    except (ElementTree.ParseError, KeyError, ValueError, TypeError, OverflowError, StopIteration) as error:
        raise CamaeError(
            f"{path}: its OME description is damaged ({type(error).__name__}: {error})"
        ) from None
    return [image for image in found if image is not None]


def _all(element: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    """Elements below one, by their name in any version's namespace."""
    return (e for e in element.iter() if isinstance(e.tag, str) and e.tag.rpartition("}")[2] == name)


def _fields(root: ElementTree.Element) -> dict[str, Field]:
    """(plate, well, site) by the ID of the image."""
    fields = {}
    for plate in _all(root, "Plate"):
        name = plate.get("Name") or ""
        for well in _all(plate, "Well"):
            place = f"{row_name(int(well.attrib['Row']) + 1)}{int(well.attrib['Column']) + 1:02d}"
            for number, sample in enumerate(_all(well, "WellSample"), start=1):
                for reference in _all(sample, "ImageRef"):
                    fields[reference.attrib["ID"]] = (name, place, str(number))
    return fields


def _image(image: ElementTree.Element, path: str, n_pages: int, field: Field | None) -> OmeImage | None:
    pixels = next(_all(image, "Pixels"))
    order = pixels.attrib["DimensionOrder"][2:]  # after XY, fastest first
    sizes = {axis: int(pixels.attrib[f"Size{axis}"]) for axis in "TCZ"}
    total = sizes["T"] * sizes["C"] * sizes["Z"]
    if sorted(order) != ["C", "T", "Z"] or min(sizes.values()) < 1 or total > _MOST_PLANES:
        raise ValueError(f"DimensionOrder {order}, sizes {sizes}")
    pages = np.full(total, -1, np.int64)  # in the order of the description
    blocks = list(_all(pixels, "TiffData"))
    for block in blocks:
        _place(block, pages, order, sizes, path)
    if not blocks:
        pages[:] = np.arange(total)
    if (pages < 0).all():
        return None
    if (pages < 0).any() or pages.max() >= n_pages:
        raise CamaeError(
            f"{path}: its OME description says {total:,} planes of {image.get('Name') or image.get('ID')}, and not "
            f"all are among the {n_pages:,} pages of this file: write each field as one file"
        )
    pages_TCZ = pages.reshape([sizes[a] for a in order[::-1]]).transpose(
        [order[::-1].index(a) for a in "TCZ"]
    )
    names = [(c.get("Name") or c.get("Fluor") or "").strip() for c in _all(pixels, "Channel")]
    channels = tuple(names) if len(names) == sizes["C"] else ("",) * sizes["C"]
    axes = "".join(a for a in order[::-1] if sizes[a] > 1) + "YX"
    return OmeImage(axes, np.ascontiguousarray(pages_TCZ), channels, field)


def _place(
    block: ElementTree.Element, pages: npt.NDArray[np.int64], order: str, sizes: dict[str, int], path: str
) -> None:
    """Write the pages of one TiffData element: consecutive pages for consecutive planes, from its first on."""
    for uuid in _all(block, "UUID"):
        other = uuid.get("FileName")
        if other and os.path.basename(other) != os.path.basename(path):
            return
    first, stride = 0, 1
    for axis in order:
        first += int(block.get(f"First{axis}", 0)) * stride
        stride *= sizes[axis]
    page = int(block.get("IFD", 0))
    count = int(block.get("PlaneCount", 1 if "IFD" in block.attrib else len(pages)))
    if first < 0 or page < 0 or count < 0:
        raise ValueError(f"TiffData {block.attrib}")
    count = min(count, max(len(pages) - first, 0))
    pages[first : first + count] = np.arange(page, page + count)
