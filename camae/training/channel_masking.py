"""Channel masking: planes of a step's crops that are hidden whole, a function of the step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from camae.dataloader.mixture import Source
from camae.dataloader.plane_batch import PlaneBatch
from camae.errors import CamaeError
from camae.model.ca_mae import CAMAE
from camae.model.interface import Model
from camae.training.config import TrainConfig
from camae.training.randomness import hidden_planes


class ChannelMask:
    """Channel mask of a run: draws which planes of a batch are hidden whole.

    Raises CamaeError where no plane can be predicted from others: for a model without decoders of single channels, or
    whose decoders see their own channel alone, and for data of one channel.
    """

    def __init__(self, config: TrainConfig, model: Model, training: Sequence[Source]):
        self.share, self.seed = config.mask_channels, config.seed
        if not self.share:
            return
        setting = f"mask_channels={self.share:g} needs"
        if not isinstance(model, CAMAE):
            raise CamaeError(f"{setting} a CA-MAE, and {model.config.name} is none; leave it out")
        if model.config.decoder.cross_attention == "none":
            raise CamaeError(
                f"{setting} decoders that look at other channels; set model_options.decoder.cross_attention to "
                "'shared' or 'per_channel'"
            )
        if all(len(source.manifest.channels) < 2 for source in training):
            raise CamaeError(f"{setting} images of two or more channels; leave it out")

    def options(self, batch: PlaneBatch) -> dict[str, np.ndarray]:
        """`hidden_K` of the model's forward for a batch on the host; empty when channels are not masked."""
        if not self.share:
            return {}
        slots_B = torch.from_numpy(batch.slots_B)
        return {"hidden_K": hidden_planes(self.seed, slots_B, batch.planes_per_sample, self.share)}
