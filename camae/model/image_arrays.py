"""Images, channel names and noise as users give them: one list entry per image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import numpy as np
import torch

from camae.dataloader.plane_batch import PlaneBatch, ValueRange
from camae.errors import CamaeError
from camae.model.interface import ChannelNames, Image, Images


def split_images(images: Images) -> list[Image]:
    """(C, H, W), (B, C, H, W) or a list of (C_i, H, W) as a list of (C_i, H, W).

    Raises CamaeError for an empty list and for other shapes.
    """
    if isinstance(images, (list, tuple)):
        if not images:
            raise CamaeError("the list of images is empty")
        for i, image in enumerate(images):
            _check_array(image, f"image {i} of the list is")
            refuse_masked(image, f"image {i}")
            if image.ndim != 3:
                raise CamaeError(
                    f"image {i} of the list has shape {tuple(image.shape)}; each must be (C, H, W)"
                )
        return list(images)
    _check_array(images, "images are")
    array = cast(Image, images)
    refuse_masked(array, "the image")
    if array.ndim == 3:
        return [array]
    if array.ndim == 4:
        return list(array)
    raise CamaeError(
        f"images have shape {tuple(array.shape)}; give (C, H, W), (B, C, H, W) or a list of (C, H, W)"
    )


def _check_array(value: object, what: str) -> None:
    if not hasattr(value, "ndim"):
        raise CamaeError(f"{what} a value of type {type(value).__name__}; give NumPy arrays or tensors")


def refuse_masked(array: object, what: str) -> None:
    """Raise CamaeError for a NumPy masked array with masked values, which a tensor cannot keep."""
    if isinstance(array, np.ma.MaskedArray) and np.ma.getmaskarray(array).any():
        raise CamaeError(
            f"{what} is a NumPy masked array with {int(np.ma.getmaskarray(array).sum()):,} masked values, which would "
            "be taken as they are; give them a value with .filled(value), or leave pixels out with region="
        )


def channel_lists(channels: ChannelNames, samples: Sequence[Image]) -> list[list[str]]:
    """One list of channel names per image, from names shared by all or one list each.

    Raises CamaeError for a wrong count or names that repeat within an image.
    """
    if isinstance(channels, str):
        raise CamaeError(f"channels is the single string {channels!r}; give a list of names, one per plane")
    if not isinstance(channels, Iterable):
        raise CamaeError(
            f"channels is a value of type {type(channels).__name__}; give a list of names, one per plane"
        )
    if all(isinstance(name, str) for name in channels):
        lists = [list(cast(Sequence[str], channels))] * len(samples)
    else:
        lists = [list(names) for names in channels]
    if len(lists) != len(samples):
        raise CamaeError(f"{len(lists)} lists of channel names for {len(samples)} images")
    for i, (names, image) in enumerate(zip(lists, samples, strict=True)):
        if len(names) != image.shape[0]:
            raise CamaeError(
                f"image {i} has {image.shape[0]} planes but {len(names)} channel names: {', '.join(names)}"
            )
        if len(set(names)) != len(names):
            raise CamaeError(f"image {i}: channel names repeat: {', '.join(names)}")
    return lists


def image_batch(
    images: Images, channels: ChannelNames, device: torch.device, value_range: ValueRange | None = None
) -> PlaneBatch:
    """Plane batch of images on a device. Errors as `split_images`, `channel_lists` and `PlaneBatch`."""
    samples = split_images(images)
    names = channel_lists(channels, samples)
    batch = PlaneBatch.from_images(samples, names, value_range=value_range)
    if batch.planes_KHW.is_floating_point():
        finite_K = batch.planes_KHW.isfinite().flatten(1).all(1)
        if not finite_K.all():
            k = int((~finite_K).nonzero()[0])
            raise CamaeError(
                f"image {int(batch.sample_K[k])}, channel {batch.names_K[k]!r} has values that are not finite (NaN or "
                "infinity)"
            )
    return batch.to(device)


def packed_noise(noise: Images | None, total: int, device: torch.device) -> torch.Tensor:
    """Noise (total,) of the mask, packed by sample; uniform random numbers without any.

    noise: (B, C*N) or a list of (C_i*N,). Raises CamaeError where it has not `total` values.
    """
    if noise is None:
        return torch.rand(total, device=device)
    parts = noise if isinstance(noise, (list, tuple)) else [noise]
    try:
        flat = torch.cat([torch.as_tensor(n).reshape(-1) for n in parts]).to(device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CamaeError(f"noise is not numbers ({error}); give one for each patch") from None
    if len(flat) != total:
        raise CamaeError(f"noise has {len(flat)} values but the images have {total} patches")
    if flat.isnan().any():
        raise CamaeError("noise has values that are NaN, from which no order of patches follows")
    return flat
