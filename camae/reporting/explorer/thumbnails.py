"""Thumbnails of wells: the middle of one site as a JPEG strip, a color composite and then every channel in gray."""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from camae.dataloader.manifest import Manifest
from camae.dataloader.read_pixels import image_size, read_window
from camae.errors import CamaeError
from camae.files import write_atomic
from camae.maps.screens import Screen
from camae.omissions import Omissions
from camae.processors import usable_cpus
from camae.progress import progress_bar
from camae.text_table import as_text
from camae.wells import WELL, normal_well

FOLDER = "wells"
LIMITS = (1.0, 99.7)  # percentiles of a plate's controls that become black and white
QUALITY = 85
Key: TypeAlias = tuple[str, ...]  # of a well: source, batch, plate and well, as far as both tables have them


_LARGEST = 2048  # px


@dataclass(frozen=True)
class ThumbnailOptions:
    """wells: of each perturbation; controls: of each plate; size: of a side in pixels; crop: side of the square in
    the middle of a site that is shown, 0 for the largest one."""

    wells: int = 3
    controls: int = 2
    size: int = 160
    crop: int = 512

    def __post_init__(self) -> None:
        for name, least in (("wells", 1), ("controls", 0), ("size", 16), ("crop", 0)):
            if getattr(self, name) < least:
                raise CamaeError(f"{name}={getattr(self, name)}: must be {least} or more")
        if self.size > _LARGEST:
            raise CamaeError(f"size={self.size}: thumbnails have sides of at most {_LARGEST} px")


@dataclass(frozen=True)
class Thumbnail:
    """Thumbnail of a well. file: its name in the folder of thumbnails; channels: of the strip, after the composite."""

    perturbation: str  # "" for a negative control
    plate: str
    well: str
    file: str
    channels: list[str]


@dataclass(frozen=True)
class Chosen:
    """A well that gets a thumbnail. row: of the manifest, its first site."""

    perturbation: str
    plate: str
    well: str
    row: int


def choose_wells(
    screen: Screen, manifest: Manifest, options: ThumbnailOptions, left_out: Omissions
) -> list[Chosen]:
    """The first wells of every perturbation and the first controls of every plate that the manifest has a site of.

    Wells come in the order of the profiles; those without a site are noted in `left_out`. Raises CamaeError without the
    columns of plate and well, or when the manifest has a site of none.
    """
    for name in ("Metadata_Plate", "Metadata_Well"):
        for table, what in ((screen.meta, "profiles"), (manifest.table, "manifest of the images")):
            if name not in table:
                raise CamaeError(
                    f"the {what} have no column {name}, so wells cannot be matched with their images"
                )
    keys = [name for name in WELL if name in screen.meta and name in manifest.table]
    site_of: dict[Key, int] = {}
    for row, key in enumerate(_keys(manifest.table, keys)):
        site_of.setdefault(key, row)
    used: Counter[Key | str] = Counter()
    found: list[Chosen] = []
    for i, key in enumerate(_keys(screen.meta, keys)):
        control, name = bool(screen.control[i]), str(screen.perturbation[i])
        group: Key | str = key[:-1] if control else name
        if group == "" or used[group] >= (options.controls if control else options.wells):
            continue
        if key not in site_of:
            left_out.add("well", " ".join(key), "the manifest of the images has no site of it")
            continue
        used[group] += 1
        found.append(Chosen("" if control else name, "/".join(key[:-1]), key[-1], site_of[key]))
    if not found:
        raise CamaeError(
            f"the manifest of the images has no site of any well of the profiles (first: {left_out.found[-1].item}); "
            "name the manifest that was embedded"
        )
    return found


def _keys(table: pd.DataFrame, names: list[str]) -> Iterator[Key]:
    texts = {name: as_text(table[name]) for name in names}
    texts["Metadata_Well"] = texts["Metadata_Well"].map(normal_well)
    return zip(*(texts[name].tolist() for name in names), strict=True)


def draw_thumbnails(
    chosen: Sequence[Chosen],
    manifest: Manifest,
    folder: Path,
    options: ThumbnailOptions,
    left_out: Omissions,
) -> list[Thumbnail]:
    """Write the thumbnails of the chosen wells and say what they show.

    All wells of a plate have the same contrast for each channel, by `LIMITS` of its controls (of all its wells, where
    it has none). A well whose site cannot be read is noted in `left_out`. Raises CamaeError when none can.
    """
    by_plate: dict[str, list[Chosen]] = {}
    for well in chosen:
        by_plate.setdefault(well.plate, []).append(well)
    out: list[Thumbnail] = []
    first_error: CamaeError | None = None
    with ThreadPoolExecutor(usable_cpus()) as pool, progress_bar() as bar:
        task = bar.add_task("thumbnails", total=sum(map(len, by_plate.values())))
        for wells in by_plate.values():
            good = []
            for well, result in zip(wells, pool.map(partial(_read, manifest, options), wells), strict=True):
                if isinstance(result, CamaeError):
                    first_error = first_error or result
                    left_out.add(
                        "well", f"{well.plate} {well.well}", "its image cannot be read for a thumbnail"
                    )
                else:
                    good.append((well, *result))
                bar.update(task, advance=1)
            out += _write(good, folder, len(out))
    if not out:
        raise first_error or CamaeError("no well has a thumbnail")
    return out


_Planes: TypeAlias = npt.NDArray[np.float32]  # (C, size, size)


def _read(
    manifest: Manifest, options: ThumbnailOptions, well: Chosen
) -> tuple[_Planes, list[str]] | CamaeError:
    try:
        channels = manifest.site_channels(well.row)
        height, width = image_size(manifest.path(well.row, channels[0]))
        crop = min(height, width, options.crop or height)
        y, x = (height - crop) // 2, (width - crop) // 2
        image, names = read_window(manifest, well.row, y, x, crop)
    except CamaeError as error:
        return error
    planes = [Image.fromarray(plane.astype(np.float32)) for plane in image]
    size = (options.size, options.size)
    return np.stack([np.asarray(p.resize(size, Image.Resampling.BOX)) for p in planes]), names


def _write(wells: list[tuple[Chosen, _Planes, list[str]]], folder: Path, start: int) -> Iterator[Thumbnail]:
    """Strips of one plate's wells, numbered from `start`."""
    limits = {}
    for channel in {name for *_, names in wells for name in names}:
        have = [(w, planes[names.index(channel)]) for w, planes, names in wells if channel in names]
        of = [plane for w, plane in have if w.perturbation == ""] or [plane for _, plane in have]
        limits[channel] = np.nanpercentile(np.stack(of), LIMITS)
    for position, (well, planes, names) in enumerate(wells, start):
        gray = np.stack([_stretched(p, *limits[n]) for p, n in zip(planes, names, strict=True)])
        path = folder / f"{position}.jpg"
        write_atomic(path, partial(_save, _strip(gray)))
        yield Thumbnail(well.perturbation, well.plate, well.well, path.name, names)


def _stretched(plane: npt.NDArray[np.float32], low: float, high: float) -> npt.NDArray[np.float32]:
    return np.clip(np.nan_to_num((plane - low) / max(high - low, 1e-12)), 0, 1)


def _save(strip: Image.Image, path: Path) -> None:
    strip.save(path, "JPEG", quality=QUALITY)


def _strip(gray_CHW: npt.NDArray[np.float32]) -> Image.Image:
    """Composite and channels of a well side by side, (size, (C + 1) size)."""
    tint_C3 = composite_colors(len(gray_CHW))
    composite = np.clip(np.einsum("chw,ck->hwk", gray_CHW, tint_C3), 0, 1)
    strip = np.concatenate([composite, *(np.repeat(p[..., None], 3, axis=2) for p in gray_CHW)], axis=1)
    return Image.fromarray(np.round(255 * strip).astype(np.uint8))


def composite_colors(channels: int) -> npt.NDArray[np.float64]:
    """Colors of channels in a composite, (C, 3): hues from blue around the circle; one channel is gray."""
    if channels == 1:
        return np.ones((1, 3))
    hues = [(0.62 + i / channels) % 1 for i in range(channels)]
    return np.array([colorsys.hsv_to_rgb(hue, 1, 1) for hue in hues]) * min(1.0, 3 / channels)
