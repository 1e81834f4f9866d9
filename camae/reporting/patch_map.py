"""Patch map of a field: colors of its patches over the image, and where it differs from controls."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from camae.errors import CamaeError, MissingFileError
from camae.files import write_atomic
from camae.reporting import html
from camae.reporting.style import data_uri, house_style, new_figure, png

PATCH_MAP = "patch_map.npz"  # in a run folder
_LEVEL = (
    "#00e5ff"  # outline of patches above the level: seen on dark and light ground, no color of the heat map
)
_HEAT = "inferno"


@dataclass(frozen=True, repr=False)
class PatchMap:
    """Patch map of a field, and of a control field beside it where there is one.

    images: (R, H, W, 3) uint8, composites of channels, all on one scale. colors: (R, h, w, 3) in [0, 1].
    distance: (R, h, w) from control patches, in their standard deviations; (0, h, w) without controls. level: what 1 %
    of the patches of control fields that were not fitted are above. labels: of the R fields. channels: of the
    composite, in blue, green and red. controls: how many control fields were compared with.
    """

    images: npt.NDArray[np.uint8]
    colors: npt.NDArray[np.floating]
    distance: npt.NDArray[np.floating]
    level: float
    labels: list[str]
    channels: list[str]
    controls: int = 0

    @property
    def shares(self) -> list[float]:
        """Share of the patches of each field that are above the level; none without controls."""
        return [float((d > self.level).sum() / max(1, np.isfinite(d).sum())) for d in self.distance]

    def __repr__(self) -> str:
        h, w = self.colors.shape[1:3]
        above = f", {self.shares[0]:.1%} of patches beyond controls" if len(self.distance) else ""
        return f"PatchMap({self.labels[0]!r}, {h} x {w} patches{above})"

    def figure(self) -> Figure:
        """A row for each field: composite, colors of patches over it, distance from controls."""
        R, columns = len(self.images), 3 if len(self.distance) else 2
        ratio = self.images.shape[1] / self.images.shape[2]
        with house_style():
            figure = new_figure(3.0 * columns + 0.6 * (columns - 2), 2.95 * ratio * R + 0.35)
            axes = figure.subplots(R, columns, squeeze=False)
            heat = None
            for r in range(R):
                _bare(axes[r, 0], self.images[r])
                axes[r, 0].set_ylabel(self.labels[r])
                _bare(axes[r, 1], _over(self.images[r], self.colors[r]))
                if len(self.distance):
                    heat = self._draw_distance(axes[r, 2], r)
            axes[0, 0].set_title(_channel_title(self.channels))
            axes[0, 1].set_title("patches: first 3 principal components")
            if heat is not None:
                axes[0, 2].set_title("distance from controls (outlined: above the line)")
                # Of the same scale but opaque: over the page's white, the colors of the map are not those of the map.
                opaque = ScalarMappable(heat.norm, heat.cmap)
                bar = figure.colorbar(opaque, ax=list(axes[:, 2]), shrink=0.8, pad=0.02)
                bar.ax.axhline(self.level, color=_LEVEL, linewidth=1.5)
                bar.set_label("control standard deviations", fontsize=8)
                bar.ax.tick_params(labelsize=8)
        return figure

    def _draw_distance(self, axes: Axes, r: int) -> AxesImage:
        """The distance of one field over its image in gray, patches above the level outlined."""
        H, W = self.images.shape[1:3]
        _bare(axes, self.images[r].max(-1))
        finite = self.distance[np.isfinite(self.distance)]
        top = max(1.2 * self.level, float(np.percentile(finite, 99.5)))
        place = (-0.5, W - 0.5, H - 0.5, -0.5)
        low = float(finite.min())
        image = axes.imshow(
            self.distance[r], cmap=_HEAT, vmin=low, vmax=top, extent=place, alpha=0.6, interpolation="nearest"
        )
        above = np.nan_to_num(self.distance[r]) > self.level
        if above.any():
            sides = [n // m for n, m in zip((H, W), above.shape, strict=True)]
            pixels = above.repeat(sides[0], 0).repeat(sides[1], 1)
            axes.contour(pixels, levels=[0.5], colors=_LEVEL, linewidths=0.8)
        return image

    def _repr_png_(self) -> bytes:
        return png(self.figure(), dpi=110)

    def save(self, path: str | Path) -> Path:
        """Write an .npz, whole or not at all; in a run folder `camae.report` looks for patch_map.npz."""
        return write_atomic(path, self._write)

    def _write(self, path: Path) -> None:
        np.savez_compressed(
            path,
            images=self.images,
            colors=self.colors,
            distance=self.distance,
            level=self.level,
            labels=self.labels,
            channels=self.channels,
            controls=self.controls,
        )

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Inverse of `save`. Raises MissingFileError, or CamaeError for a damaged file."""
        if not Path(path).is_file():
            raise MissingFileError(f"{path}: no such patch map")
        try:
            with np.load(path, allow_pickle=False) as file:
                labels, channels = ([str(x) for x in file[name]] for name in ("labels", "channels"))
                pictures = file["images"], file["colors"], file["distance"]
                return cls(*pictures, float(file["level"]), labels, channels, int(file["controls"]))
        except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
            raise CamaeError(f"{path}: not readable as a patch map ({error}); make it again") from None


def patch_map_section(folder: Path) -> str:
    """HTML of a run folder's patch map; "" without one."""
    path = folder / PATCH_MAP
    if not path.is_file():
        return ""
    found = PatchMap.read(path)
    caption = (
        "Vectors of patches, mean over channels. Middle: their first three principal components over all fields shown "
        "as red, green and blue, over the image: equal colors mean alike."
    )
    words = []
    if len(found.distance):
        caption += (
            f" Right: distance from the patches of {found.controls} control fields of the plate, as root mean square "
            "over their principal components in standard deviations; outlined: above what 1 % of the patches of "
            "control fields that were not fitted reach."
        )
        each = zip(found.labels, found.shares, strict=True)
        words = [f"{label}: {share:.1%} of patches above the level of controls." for label, share in each]
    picture = html.image(data_uri(png(found.figure(), dpi=120)), f"Patch map of {found.labels[0]}")
    return "".join(map(html.paragraph, words)) + html.figure(picture, caption, "picture")


def _bare(axes: Axes, image: npt.NDArray[np.generic]) -> None:
    """An image without ticks and frame; (H, W) uint8 in gray."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _over(image: npt.NDArray[np.uint8], colors: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Colors of patches, as bright as the image; gray where a patch has none."""
    gray = image.max(-1, keepdims=True) / 255
    sides = [n // m for n, m in zip(image.shape[:2], colors.shape[:2], strict=True)]
    large = colors.repeat(sides[0], 0).repeat(sides[1], 1)
    return np.where(np.isfinite(large), large * (0.4 + 0.6 * gray), gray)


def _channel_title(channels: list[str]) -> str:
    if len(channels) == 1:
        return channels[0]
    return ", ".join(
        f"{name} {color}" for name, color in zip(channels, ("blue", "green", "red"), strict=False)
    )
