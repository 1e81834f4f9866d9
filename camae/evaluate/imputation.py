"""Imputed channels: a plane predicted from the other channels of its image, with the error at every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from camae.dataloader.plane_batch import ValueRange
from camae.errors import CamaeError
from camae.kernels.patches import planes_of_patches
from camae.model.ca_mae import CAMAE
from camae.model.eval_mode import eval_mode
from camae.model.image_arrays import image_batch
from camae.model.interface import Image


@dataclass(frozen=True)
class Imputed:
    """Imputed channel of one image, float32 (H, W), in standard deviations of the plane.

    original_HW: the plane, self-standardized. imputed_HW: predicted from the other channels.
    """

    channel: str
    original_HW: np.ndarray
    imputed_HW: np.ndarray

    @property
    def error_HW(self) -> np.ndarray:
        """Absolute error at every pixel, (H, W)."""
        return np.asarray(np.abs(self.imputed_HW - self.original_HW))

    @property
    def mse(self) -> float:
        """Mean squared error; 1 is that of a plane that is its mean everywhere."""
        return float(np.mean((self.imputed_HW - self.original_HW) ** 2))


@torch.no_grad()
def impute(
    model: CAMAE,
    image: Image,
    channels: Sequence[str],
    hidden: str,
    *,
    value_range: ValueRange | None = None,
) -> Imputed:
    """Predict one channel of an image from all its others.

    image: (C, H, W) of the model's crop. channels: C names. hidden: the channel to predict.
    Raises CamaeError as `model.reconstruct`, for another shape, and for a model that does not reconstruct.
    """
    if not isinstance(model, CAMAE):
        raise CamaeError("a channel is imputed by the decoders of a CA-MAE; give one")
    if isinstance(channels, str):
        raise CamaeError(f"channels is the single string {channels!r}; give a list of names, one per plane")
    if np.ndim(image) != 3:
        raise CamaeError("one image (C, H, W) is imputed at a time, as an array or tensor")
    with eval_mode(model):
        patches, _ = model.reconstruct(
            image, list(channels), mask_ratio=0.0, hidden=[hidden], value_range=value_range
        )
    batch = image_batch(image, list(channels), model.device, value_range)
    place = list(channels).index(hidden)
    plane = batch.planes_KHW[place].double()
    eps = model.eps(batch)
    original = (plane - plane.mean()) / (plane.var(correction=0) + eps**2).sqrt()
    own_NP2 = patches.unflatten(0, (len(channels), -1))[place].float()
    imputed = planes_of_patches(own_NP2, *plane.shape)[0]
    return Imputed(hidden, original.float().cpu().numpy(), imputed.cpu().numpy())
