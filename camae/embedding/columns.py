"""Feature columns of a screen's table: their names and order, by pooling, layers and intensity."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from camae.embedding.intensity import STATISTICS, intensity_names
from camae.embedding.store.ledger import Ledger
from camae.embedding_table import feature_columns
from camae.model.pooling import MOMENTS, PER_CHANNEL


def in_columns(vector: torch.Tensor, ledger: Ledger) -> torch.Tensor:
    """A site's vector flat, in the order of `vector_columns`: embedding first, intensities last."""
    if not (ledger.intensity and ledger.pool in PER_CHANNEL):
        return vector.flatten()
    embedding, intensity = vector[..., : -len(STATISTICS)], vector[..., -len(STATISTICS) :]
    return torch.cat([embedding.flatten(), intensity.flatten()])


def vector_columns(
    pool: str, channels: Sequence[str], count: int, *, layers: Sequence[int] = (), intensity: bool = False
) -> list[str]:
    """Names of the `count` feature columns.

    emb_0000 ... of means and class tokens (channels, and layers before them, side by side). Moments say what they are:
    emb_mean_0000 ... emb_sd_0000 ..., per channel emb_DNA_mean_0000 ..., of several layers emb_layer2_mean_0000 ....
    Then intensity_DNA_mean, intensity_DNA_sd, intensity_DNA_q01 ... (`intensity_names`).
    """
    last = intensity_names(channels) if intensity else []
    width = count - len(last)
    if pool not in MOMENTS:
        return [*feature_columns(width), *last]
    of_layer = [f"layer{number}_" for number in layers] if len(layers) > 1 else [""]
    of_channel = [f"{channel}_" for channel in channels] if pool in PER_CHANNEL else [""]
    each = width // (2 * len(of_layer) * len(of_channel))
    names = [
        f"emb_{layer}{channel}{moment}_{i:04d}"
        for layer in of_layer
        for channel in of_channel
        for moment in ("mean", "sd")
        for i in range(each)
    ]
    return [*names, *last]
