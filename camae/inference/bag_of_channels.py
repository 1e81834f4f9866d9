"""Bag of channels: each channel encoded alone, then pooled. Linear cost in channels, and no look from one to another.

A vector of C channels then costs C times a vector of one (attention over N + 1 tokens, not C*N + 1), and a
channel's part does not depend on which others are there. It is another embedding than the joint one, not an
approximation of it: an option to ask for, `camae.embed(images, channels, BagOfChannels(model))`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from camae.dataloader.plane_batch import PlaneBatch
from camae.errors import CamaeError
from camae.model.ca_mae import CAMAE
from camae.model.pooling import pool_tokens
from camae.model.token_layout import planes_per_sample


class BagOfChannels(nn.Module):
    """A CA-MAE that sees one channel at a time, for `embed` and `embed_screen`.

    "mean" is the mean over channels of their means, "cls" the mean of their class tokens, "per_channel" (C, D) has
    each channel's own mean. Regions and layers need the joint encoder.
    """

    def __init__(self, model: CAMAE):
        super().__init__()
        if not isinstance(model, CAMAE):
            raise CamaeError(f"a bag of channels needs a CA-MAE, not a {type(model).__name__}")
        self.model = model
        self.config = replace(model.config, name=f"{model.config.name} (bag of channels)")

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def channels(self) -> list[str]:
        """As the model's."""
        return self.model.channels

    def n_patches(self, batch: PlaneBatch) -> int:
        """N, patches per plane."""
        return self.model.n_patches(batch)

    def check_channels(self, names: Sequence[str]) -> None:
        """Any distinct names will do."""

    def embed_batch(self, batch: PlaneBatch, pool: str, *, interpolate: bool) -> list[torch.Tensor]:
        """One float32 vector per sample, (D,) or (C, D)."""
        counts = planes_per_sample(batch)
        alone = replace(batch, sample_K=torch.arange(len(batch.planes_KHW), device=batch.planes_KHW.device))
        tokens, layout = self.model.encode(alone, interpolate=interpolate)
        vectors_KD = torch.stack(pool_tokens(tokens, layout, "cls" if pool == "cls" else "mean"))  # type: ignore[arg-type]
        samples = vectors_KD.split(counts)
        return list(samples) if pool == "per_channel" else [planes.mean(0) for planes in samples]
