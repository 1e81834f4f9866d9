"""Validation of images, channel names and values: whatever would give silently wrong vectors is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch

from camae.dataloader.plane_batch import ValueRange
from camae.errors import CamaeError
from camae.model.image_arrays import channel_lists, split_images
from camae.model.interface import ChannelNames, Config, Image, Images, TransformerConfig
from camae.model.standardization import OWN_EPS, OWN_EPS_FLOAT, standardization_eps

_SHAPES = "give (C, H, W), (B, C, H, W) or a list of (C, H, W), NumPy or torch"


def check_images(images: Images) -> list[Image]:
    """The images one by one, each (C, H, W) with planes and pixels in it."""
    items = images if isinstance(images, list | tuple) else [images]
    for item in items:
        if not isinstance(item, np.ndarray | torch.Tensor):
            raise CamaeError(f"images hold a {type(item).__name__}; {_SHAPES}")
    samples = split_images(images)
    if not samples:  # a list is checked by split_images
        raise CamaeError(f"the batch of images is empty: its shape is {tuple(cast(Image, images).shape)}")
    for i, sample in enumerate(samples):
        if 0 in sample.shape:
            raise CamaeError(f"image {i} has the shape {tuple(sample.shape)}: there is nothing in it")
    return samples


def check_channels(channels: ChannelNames, samples: Sequence[Image]) -> list[list[str]]:
    """One list of distinct names per image. An encoder takes any names; decoders have their own check."""
    if isinstance(channels, str):
        raise CamaeError(f"channels is the single string {channels!r}; give a list of names, one per plane")
    if not isinstance(channels, Sequence | np.ndarray):
        raise CamaeError(f"channels is a {type(channels).__name__}; give a list of names, one per plane")
    lists = [names for names in channels if isinstance(names, list | tuple | np.ndarray)]
    if lists and len(lists) < len(channels):
        raise CamaeError("channels mixes names and lists of names; give one list, or one list per image")
    for name in [name for names in lists for name in names] if lists else channels:
        if not isinstance(name, str) or not name or name != name.strip():
            raise CamaeError(
                f"channels holds {name!r}; channel names are text, not empty and without blanks around it"
            )
    return channel_lists([list(names) for names in channels] if lists else list(channels), samples)


def check_values(
    image_CHW: torch.Tensor,
    where: str,
    names: Sequence[str],
    standardization: str,
    value_range: ValueRange | None,
    extremes_2C: np.ndarray | None = None,
) -> None:
    """Refuse float images without a range or far outside it, other dtypes, and values that are not finite.

    extremes_2C: what `extremes` says of the image, where it is known already.
    """
    lowest_C = highest_C = None
    if image_CHW.dtype.is_floating_point:
        lowest_C, highest_C = extremes(image_CHW) if extremes_2C is None else extremes_2C
        finite_C = np.isfinite(lowest_C) & np.isfinite(highest_C)
        if not finite_C.all():
            name = names[int(np.flatnonzero(~finite_C)[0])]
            raise CamaeError(f"{where}, channel {name!r} has values that are not finite (NaN or infinity)")
        if value_range is None:
            hint = (
                ": its highest value is <= 1, which looks like an image scaled to [0, 1]"
                if highest_C.max() <= 1
                else ""
            )
            raise CamaeError(
                f"{where} is {image_CHW.dtype}{hint}; say its lowest and highest possible value with "
                "value_range=(lo, hi)"
            )
    standardization_eps(standardization, image_CHW.dtype, value_range)
    if value_range is not None and lowest_C is not None and highest_C is not None:
        # Background or illumination correction may leave the range a little; another unit leaves it by far.
        low, high = value_range
        if lowest_C.min() < low - (high - low) or highest_C.max() > high + (high - low):
            raise CamaeError(
                f"{where} has values from {lowest_C.min():g} to {highest_C.max():g}, far outside value_range "
                f"({low:g}, {high:g})"
            )


def constant_planes(
    image_CHW: torch.Tensor,
    value_range: ValueRange | None,
    extremes_2C: np.ndarray | None = None,
) -> np.ndarray:
    """(C,) bool: planes whose variance is below eps^2 (ARCHITECTURE, standardization): they have no signal.

    extremes_2C: what `extremes` says of the image, where it is known already.
    """
    span = 1.0 if value_range is None else value_range[1] - value_range[0]
    eps = OWN_EPS_FLOAT * span if image_CHW.dtype.is_floating_point else OWN_EPS
    lowest_C, highest_C = extremes(image_CHW) if extremes_2C is None else extremes_2C
    # Two pixels a range r apart give n pixels a variance of at least r^2 / 2n; only below that need it be computed.
    n_pixels = image_CHW[0].numel()
    doubtful_C = (highest_C - lowest_C) ** 2 < 2 * n_pixels * eps**2
    for c in np.flatnonzero(doubtful_C):
        doubtful_C[c] = float(image_CHW[c].double().var(correction=0)) < eps**2
    return doubtful_C


def constant_sentence(image_CHW: torch.Tensor, constant_C: np.ndarray, names: Sequence[str]) -> str:
    """ "channel 'ER' is constant (7 everywhere)", of the first constant plane."""
    c = int(np.flatnonzero(constant_C)[0])
    return f"channel {names[c]!r} is constant ({float(image_CHW[c].flatten()[0]):g} everywhere)"


def extremes(planes: torch.Tensor) -> np.ndarray:
    """Lowest and highest value of every plane, (2, ...) float64 for (..., H, W); NaN where a plane has one."""
    if planes.device.type == "cpu" and planes.dtype != torch.bfloat16:
        array = planes.detach().numpy()
        return np.stack([array.min((-2, -1)), array.max((-2, -1))]).astype(np.float64)
    # torch has few ops for uint16.
    values = planes.to(torch.int32) if planes.dtype == torch.uint16 else planes
    return torch.stack(torch.aminmax(values.flatten(-2), dim=-1)).double().cpu().numpy()


def check_layers(layers: int | str | Sequence[int] | None, config: Config) -> tuple[int, ...]:
    """Block numbers from 0; negative ones count from the last block."""
    if layers is None:
        return ()
    if isinstance(layers, str):
        raise CamaeError(f"layers is {layers!r}; name blocks by their numbers here")
    depth = config.depth if isinstance(config, TransformerConfig) else 0
    numbers = [layers] if isinstance(layers, int) else list(layers)
    if not numbers:
        raise CamaeError(
            "layers is empty; name at least one block, or leave it out for the last one's output"
        )
    for number in numbers:
        if not isinstance(number, int) or not -depth <= number < depth:
            raise CamaeError(
                f"layers holds {number!r}; the encoder has blocks 0 to {depth - 1} (-1 is the last)"
            )
    return tuple(number % depth for number in numbers)
