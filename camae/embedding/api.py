"""`camae.embed`: vectors of images in memory, right for every input or refused."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from camae.embedding.default_model import resolve_model
from camae.embedding.encode import Piece, Reading, encode_pieces, token_budget
from camae.embedding.regions import Region, read_regions, regions_per_image
from camae.embedding.validate import (
    as_tensor,
    check_budget,
    check_channels,
    check_dtype,
    check_images,
    check_layers,
    check_values,
    constant_planes,
    constant_sentence,
    extremes,
    is_ragged,
    stacked_like,
)
from camae.embedding.windows import check_overlap, tile_corners
from camae.errors import CamaeError
from camae.model.interface import Images
from camae.model.pooling import average, check_pool

TILES = ("cover", "grid", "interpolate")


def embed(
    images: Images,
    channels: Sequence[str] | Sequence[Sequence[str]],
    model: nn.Module | str | Path | None = None,
    pool: str = "mean",
    *,
    region: Any = None,
    region_size: int | None = None,
    tile: str | None = None,
    tiles: str | None = None,
    overlap: float = 0.0,
    layers: int | Sequence[int] | None = None,
    value_range: tuple[float, float] | None = None,
    dtype: torch.dtype | str | None = None,
    tokens_per_pass: int | None = None,
) -> np.ndarray | torch.Tensor | list:
    """Embed images of any channel set.

    images: (C, H, W), (B, C, H, W) or a list of (C_i, H, W); uint8, uint16 or float; torch or numpy.
    channels: names, shared by all images or one list per image; distinct within an image.
    model: a model, a path, or None for the one named by `camae.use` or CAMAE_MODEL.
    pool: "mean" over patch tokens, "cls" the class token, "per_channel" a mean for each channel.
    tile (or tiles): for images that are not the model's crop: "cover" (tiles, mean over them), "grid"
        (non-overlapping tiles, a rest is left out), "interpolate" (positions interpolated to the image's size).
        A tile with a constant plane is left out, with a warning.
    overlap: least share of a tile that neighbors have in common, for "cover".
    region: vectors of cells or regions instead of images: a boolean mask (H, W), masks (R, H, W), an integer label
        image (H, W; each label above 0 is a region), or a table of centers with the columns Metadata_Cell_X and
        Metadata_Cell_Y in pixels. For a batch or list, one entry per image. Around each region a model-sized window
        is taken (moved into the image at its edge) and standardized, and only patches that touch the region are
        encoded; regions larger than the window get several windows, and the mean is over their tokens.
    region_size: side in px of the square that a row of a table stands for; default the whole window.
    layers: outputs of encoder blocks instead of the last one's: a number, or several, counted from 0 or, negative,
        from the last; before the final norm, where a model has one.
    value_range: lowest and highest possible value; needed for float images.
    dtype: compute type, float32 (default) or bfloat16.
    tokens_per_pass: encoder tokens computed at once; default by the memory of the device.

    Returns float32 of the input's kind and device: (D,) for one image, (B, D) for a batch or a list of equal
    channel counts, with "per_channel" (C, D) and (B, C, D); a list of vectors when channel counts differ. Several
    layers add an axis before these last ones: (B, L, D), (B, L, C, D). With regions (D,) for a single mask, else
    (R, D) per image, and a list of these when there are several images.
    Raises CamaeError for whatever would give silently wrong vectors.
    """
    check_pool(pool)
    check_budget(tokens_per_pass)
    compute = check_dtype(dtype)
    how = _tile_choice(tile, tiles, overlap, region is not None)
    samples = check_images(images)
    names = check_channels(channels, samples)
    net = resolve_model(model)
    tensors = [as_tensor(s) for s in samples]
    # A batch in one go: its planes are looked at once, with a single wait for a GPU.
    batch = as_tensor(images) if isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4 else None
    ranges = [extremes(t) for t in tensors] if batch is None else list(extremes(batch).swapaxes(0, 1))
    for i, (image, channel) in enumerate(zip(tensors, names, strict=True)):
        check_values(image, f"image {i}", channel, net.config.standardization, value_range, ranges[i])
    plan = _Plan(net.config, tensors, names, value_range, ranges)
    is_list = isinstance(images, list | tuple)
    ndim = 4 if is_list else images.ndim  # type: ignore[union-attr]
    if region is None:
        if region_size is not None:
            raise CamaeError("region_size needs region=, a table of centers")
        counts = plan.add_images(how, overlap)
    else:
        counts = plan.add_regions(regions_per_image(region, len(samples), is_list, ndim), region_size)
    reading = Reading(
        pool,
        how == "interpolate",
        compute,
        check_layers(layers, getattr(net.config, "depth", 0)),
    )
    parts = encode_pieces(
        net, tensors, names, plan.pieces, reading, tokens_per_pass or token_budget(net), value_range
    )
    vectors = plan.combine(parts, pool, net.config.patch)
    if isinstance(layers, int):
        vectors = [v[0] for v in vectors]
    empty = partial(_empty, net, reading, isinstance(layers, int))
    per_image, end = [], 0
    for sample, count in zip(samples, counts, strict=True):
        of_image = vectors[end : end + (1 if count is None else count)]
        end += len(of_image)
        if count is None:
            per_image.append(of_image[0])
        else:
            per_image.append(torch.stack(of_image) if of_image else empty(sample.shape[0]))
    if ndim == 3:
        return stacked_like(per_image, samples[0], stack=False)[0]
    as_array = all(c is None for c in counts) or isinstance(region, np.ndarray | torch.Tensor)
    stack = as_array and not is_ragged(images) and len({v.shape for v in per_image}) == 1
    return stacked_like(per_image, samples[0], stack)


def _empty(model: Any, reading: Reading, single_layer: bool, n_channels: int) -> torch.Tensor:
    """The vectors of an image without regions."""
    layers = () if single_layer or not reading.layers else (len(reading.layers),)
    planes = (n_channels,) if reading.pool == "per_channel" else ()
    return torch.empty(0, *layers, *planes, model.config.width)


def _tile_choice(tile: str | None, tiles: str | None, overlap: float, with_regions: bool) -> str | None:
    if tile is not None and tiles is not None and tile != tiles:
        raise CamaeError(f"tile={tile!r} and tiles={tiles!r} are the same option; give one")
    how = tile if tile is not None else tiles
    if how not in (None, *TILES):
        raise CamaeError(f"tile {how!r} is not 'cover', 'grid' or 'interpolate'")
    check_overlap(overlap)
    if with_regions and how in ("grid", "interpolate"):
        raise CamaeError(f"region= takes its own windows; leave out tile={how!r}")
    return how


@dataclass
class _Plan:
    """Which pieces of which image make up each vector."""

    config: Any
    images: Sequence[torch.Tensor]
    names: Sequence[Sequence[str]]
    value_range: tuple[float, float] | None
    ranges: Sequence[np.ndarray]  # of each image, (2, C): lowest and highest value of its planes
    pieces: list[Piece] = field(default_factory=list)
    n_vectors: int = 0

    def add_images(self, tile: str | None, overlap: float) -> list[int | None]:
        """One vector per image."""
        size = self.config.crop
        for i, image in enumerate(self.images):
            height, width = image.shape[1:]
            where = f"image {i}"
            whole = tile == "interpolate" or (height, width) == (size, size)
            if not whole and tile is None:
                raise CamaeError(
                    f"{where} is {height} x {width} px but the model's crop is {size} x {size} px; tile it "
                    "(tile='cover' or 'grid') or ask for interpolated positions (tile='interpolate')"
                )
            if whole:
                windows = [Piece(i, self.n_vectors, 0, 0, height, width)]
            else:
                corners = self._corners(where, height, width, tile or "", overlap)
                windows = [Piece(i, self.n_vectors, y, x, size, size) for y, x in corners]
            self._add(windows, where, "it" if whole else "tile")
        return [None] * len(self.images)

    def add_regions(self, per_image: Sequence[Any], region_size: int | None) -> list[int | None]:
        """One vector per region; how many each image has, None for a single mask."""
        counts: list[int | None] = []
        for i, (image, value) in enumerate(zip(self.images, per_image, strict=True)):
            height, width = image.shape[1:]
            regions, single = read_regions(value, (height, width), f"image {i}", region_size)
            self._corners(f"image {i}", height, width, "center", 0.0)
            for number, region in enumerate(regions):
                where = f"image {i}, region {number}"
                self._add(self._windows(i, region, height, width), where, "its window")
            counts.append(None if single else len(regions))
        return counts

    def _windows(self, image: int, region: Region, height: int, width: int) -> list[Piece]:
        size, patch = self.config.crop, self.config.patch
        pieces = []
        for y, x in region.windows(height, width, size):
            patches = region.patches(y, x, size, patch)
            if patches is None or len(patches):
                pieces.append(Piece(image, self.n_vectors, y, x, size, size, patches))
        return pieces

    def _corners(
        self, where: str, height: int, width: int, tile: str, overlap: float
    ) -> list[tuple[int, int]]:
        try:
            return tile_corners(height, width, self.config.crop, tile, overlap)
        except CamaeError as error:
            raise CamaeError(f"{where}: {error}") from None

    def _add(self, windows: list[Piece], where: str, what: str) -> None:
        """The pieces of the next vector, without those in which a plane has no signal."""
        kept, left_out = [], []
        for piece in windows:
            planes = piece.cut(self.images[piece.image])
            whole = planes.shape == self.images[piece.image].shape
            known = self.ranges[piece.image] if whole else None
            constant = constant_planes(planes, self.value_range, known)
            if constant.any():
                left_out.append((piece, constant_sentence(planes, constant, self.names[piece.image])))
            else:
                kept.append(piece)
        if not kept:
            place = {"it": "", "tile": " in every tile", "its window": " in its window"}[what]
            raise CamaeError(f"{where}, {left_out[0][1]}{place}; leave it out")
        for piece, sentence in left_out:
            warnings.warn(
                f"{where}: the tile at row {piece.y}, column {piece.x} is left out: {sentence}", stacklevel=4
            )
        self.pieces += kept
        self.n_vectors += 1

    def combine(self, parts: Sequence[torch.Tensor], pool: str, patch: int) -> list[torch.Tensor]:
        """The vectors: means over the tokens of their pieces (over the pieces for class tokens)."""
        vectors: list[list[torch.Tensor]] = [[] for _ in range(self.n_vectors)]
        weights: list[list[int]] = [[] for _ in range(self.n_vectors)]
        for piece, part in zip(self.pieces, parts, strict=True):
            vectors[piece.owner].append(part)
            weights[piece.owner].append(1 if pool == "cls" else piece.n_visible(patch))
        return [average(v, w) for v, w in zip(vectors, weights, strict=True)]
