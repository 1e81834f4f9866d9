"""Bag of channels: one channel encoded at a time, and the mean over channels.

A vector of C channels costs C times a vector of one (attention over N + 1 tokens, not C*N + 1), and a channel's part
does not depend on which others are there. It is another embedding than the joint one, not an approximation of it:
an option to ask for, `camae.embed(images, channels, BagOfChannels(model))`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from camae.dataloader.plane_batch import PlaneBatch
from camae.errors import CamaeError
from camae.model.ca_mae import CAMAE
from camae.model.encoder import Encoder
from camae.model.interface import Model
from camae.model.pooling import MOMENTS, PER_CHANNEL, combine, pool_tokens


class BagOfChannels(Model):
    """Channel-wise encoder: a CA-MAE that sees one channel at a time, for `embed` and `embed_screen`.

    "mean" is the mean over channels of their means, "cls" the mean of their class tokens, "per_channel" (C, D) has
    each channel's own mean, "moments" and "moments_per_channel" also standard deviations over the same tokens. Regions
    and layers need the joint encoder.
    Raises CamaeError for another model than a CA-MAE.
    """

    def __init__(self, model: CAMAE):
        if not isinstance(model, CAMAE):
            raise CamaeError(f"a bag of channels needs a CA-MAE, not a {type(model).__name__}")
        config = replace(model.config, name=f"{model.config.name} (bag of channels)")
        super().__init__(config, model.backends)
        self.model = model
        self.origin = model.origin

    @property
    def encoder(self) -> Encoder:  # type: ignore[override]
        """Encoder of the CA-MAE."""
        return self.model.encoder

    def check_channels(self, names: Sequence[str]) -> None:
        """Accept any distinct names."""

    def embed_batch(self, batch: PlaneBatch, pool: str, *, interpolate: bool = False) -> list[torch.Tensor]:
        """One float32 vector per sample: (D,) or (C, D), for moments (2D,) or (C, 2D)."""
        counts = batch.planes_per_sample
        alone = replace(batch, sample_K=torch.arange(len(batch.planes_KHW), device=batch.planes_KHW.device))
        tokens_TD, layout = self.model.encode(alone, interpolate=interpolate)
        of_plane = "moments" if pool in MOMENTS else "cls" if pool == "cls" else "mean"
        samples = torch.stack(pool_tokens(tokens_TD, layout, of_plane)).split(counts)
        if pool in PER_CHANNEL:
            return list(samples)
        return [combine(planes.unbind(0), [1] * len(planes), pool) for planes in samples]
