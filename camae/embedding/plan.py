"""Embedding plan: the windows of images in memory that make up each output vector."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from camae.dataloader.plane_batch import ValueRange
from camae.embedding.encode import EncodeOptions, encode_windows
from camae.embedding.finite import all_finite, not_finite, suspect_channels
from camae.embedding.inputs import ImageSet
from camae.embedding.intensity import plane_intensity, with_intensity
from camae.embedding.regions import Region, RegionSource, read_regions
from camae.embedding.windows import Window, constant_windows, tile_corners, tile_windows
from camae.errors import CamaeError
from camae.model.interface import Config, Model

_TO_CALLER = 5  # frames from a warning to the caller of `camae.embed`


@dataclass
class EmbedPlan:
    """Windows of every output vector.

    counts: vectors of each image; None where it has one without an axis for regions. intensity: put intensity
    statistics after each vector; intensities: those of each vector, (C, 7) float64.
    """

    config: Config
    images: ImageSet
    value_range: ValueRange | None
    intensity: bool = False
    windows: list[Window] = field(default_factory=list)
    counts: list[int | None] = field(default_factory=list)
    n_vectors: int = 0
    intensities: list[torch.Tensor] = field(default_factory=list)

    def add_images(self, tiles: str | None, overlap: float) -> None:
        """One vector per image. Raises CamaeError for an image that is not of the model's crop, without `tiles`."""
        for i, image in enumerate(self.images.tensors):
            kept = self._add(self._tiles(i, tiles, overlap), f"image {i}")
            if self.intensity:
                of_tiles = torch.stack([plane_intensity(window.cut(image)) for window in kept])
                self.intensities.append(of_tiles.mean(0))
            self.counts.append(None)

    def add_maps(self, tiles: str | None) -> None:
        """One vector per tile of each image, for maps. Raises CamaeError for tiles that are not side by side."""
        if tiles == "cover":
            raise CamaeError("a patch map needs tiles side by side: tiles='grid', 'center' or 'interpolate'")
        for i in range(len(self.images)):
            first = self.n_vectors
            windows = [replace(w, vector_index=first + n) for n, w in enumerate(self._tiles(i, tiles, 0.0))]
            self.counts.append(len(self._add(windows, f"image {i}")))
            self.n_vectors = first + len(windows)

    def _tiles(self, i: int, tiles: str | None, overlap: float) -> list[Window]:
        """Windows of an image. Raises CamaeError where it is not of the model's crop, without `tiles`."""
        crop = self.config.crop
        height, width = self.images.tensors[i].shape[1:]
        if tiles is None and min(height, width) >= crop and (height, width) != (crop, crop):
            raise CamaeError(
                f"image {i} is {height} x {width} px but the model's crop is {crop} x {crop} px; tile it "
                "(tiles='cover' or 'grid') or ask for interpolated positions (tiles='interpolate')"
            )
        whole = Window(i, self.n_vectors, 0, 0, height, width)
        try:
            return tile_windows(whole, crop, self.config.patch, tiles or "grid", overlap)
        except CamaeError as error:
            raise CamaeError(f"image {i}: {error}") from None

    def add_regions(self, per_image: Sequence[RegionSource], region_size: int | None) -> None:
        """One vector per region of each image."""
        for i, (image, source) in enumerate(zip(self.images.tensors, per_image, strict=True)):
            height, width = image.shape[1:]
            regions, single = read_regions(source, (height, width), f"image {i}", region_size)
            try:
                tile_corners(height, width, self.config.crop, "center")
            except CamaeError as error:
                raise CamaeError(f"image {i}: {error}") from None
            for number, region in enumerate(regions):
                around = self._around(i, region, height, width)
                self._add(around, f"image {i}, region {number}")
                if self.intensity:
                    pixels = around[0].cut(image) if region.whole_window else region.pixels(image)
                    self.intensities.append(plane_intensity(pixels))
            self.counts.append(None if single else len(regions))

    def _around(self, image: int, region: Region, height: int, width: int) -> list[Window]:
        """Model-sized windows of a region, with the patches that touch it."""
        crop, patch = self.config.crop, self.config.patch
        windows = []
        for y, x in region.windows(height, width, crop):
            patches = region.patches(y, x, crop, patch)
            if patches is None or len(patches):
                windows.append(Window(image, self.n_vectors, y, x, crop, crop, patches))
        return windows

    def _add(self, windows: list[Window], where: str) -> list[Window]:
        """The windows of the next vector, without those in which a plane has no signal; these are returned."""
        i = windows[0].image
        reasons = constant_windows(
            self.images.tensors[i],
            windows,
            self.images.names[i],
            self.value_range,
            where,
            self.images.extremes[i],
        )
        for window, reason in zip(windows, reasons, strict=True):
            if reason is None:
                self.windows.append(window)
            else:
                warnings.warn(
                    f"{where}: the tile at row {window.y}, column {window.x} is left out: {reason}",
                    stacklevel=_TO_CALLER,
                )
        self.n_vectors += 1
        return [window for window, reason in zip(windows, reasons, strict=True) if reason is None]

    def encode(self, model: Model, options: EncodeOptions, tokens_per_pass: int) -> list[list[torch.Tensor]]:
        """Float32 vectors of each image, on the model's device."""
        images, span = self.images, self.value_range
        vectors = encode_windows(
            model, images.tensors, images.names, self.windows, options, tokens_per_pass, span
        )
        if not all_finite(vectors):
            raise self._not_finite(model, vectors, options, tokens_per_pass)
        if self.intensity:
            both = zip(vectors, self.intensities, strict=True)
            vectors = [with_intensity(vector, statistics, options.pool) for vector, statistics in both]
        each = iter(vectors)
        return [[next(each) for _ in range(1 if count is None else count)] for count in self.counts]

    def _not_finite(
        self, model: Model, vectors: Sequence[torch.Tensor], options: EncodeOptions, tokens_per_pass: int
    ) -> CamaeError:
        """The error for the first vector with NaN or infinity."""
        indices = list(dict.fromkeys(window.vector_index for window in self.windows))
        index = next(i for i, vector in zip(indices, vectors, strict=True) if not all_finite([vector]))
        windows = [window for window in self.windows if window.vector_index == index]
        i = windows[0].image
        image, names = self.images.tensors[i], self.images.names[i]
        suspects = suspect_channels(model, image, names, windows, options, tokens_per_pass, self.value_range)
        return not_finite(model, f"image {i}", names, suspects)
