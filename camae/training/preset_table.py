"""Table of presets: parameters, tokens, FLOPs and memory per crop, by the formulas that training and embedding use."""

from __future__ import annotations

import pandas as pd

from camae.embedding.encode import bytes_per_token
from camae.errors import CamaeError
from camae.model.config import MOST_CHANNELS, PRESETS, encoder_parameters, preset
from camae.model.flops import model_flops
from camae.model.token_layout import kept_count
from camae.training.config import TrainConfig
from camae.training.memory_estimate import estimate, parameter_count


def preset_table(channels: int = 6) -> pd.DataFrame:
    """Presets of CA-MAE, one row each, for crops of so many channels.

    Columns: preset, crop, patch, width, depth; parameters of the encoder alone and with decoders for these channels;
    encoder tokens of a crop that is embedded and of one that is masked for training, the class token included; FLOPs
    of embedding a crop and of training on it (forward and backward); bytes that a crop takes in a pass, embedded in
    float32 and trained on in bf16, beside weights and optimizer. Nothing here is measured.
    Raises CamaeError for a number of channels that cannot be.
    """
    if not 0 < channels <= MOST_CHANNELS:
        raise CamaeError(f"channels {channels}: give a number from 1 to {MOST_CHANNELS:,}")
    return pd.DataFrame([_row(name, channels) for name in PRESETS])


def _row(name: str, channels: int) -> dict[str, object]:
    c = preset(name, channels=tuple(f"channel {i}" for i in range(channels)))
    patches = channels * c.n_patches
    embedded = model_flops(c, (channels,), 0.0)
    memory = estimate(TrainConfig(model=name), c, [channels], ranks=1, bf16=True)
    return {
        "preset": name,
        "crop": c.crop,
        "patch": c.patch,
        "width": c.width,
        "depth": c.depth,
        "encoder_parameters": encoder_parameters(c),
        "parameters": parameter_count(c),
        "embed_tokens": patches + 1,
        "embed_flops": embedded.tokenizer + embedded.encoder,
        "embed_bytes": (patches + 1) * bytes_per_token(c),
        "train_tokens": kept_count(patches, c.mask_ratio, c.keep_multiple) + 1,
        "train_flops": model_flops(c, (channels,), c.mask_ratio).training,
        "train_bytes": memory.per_token * memory.largest_crop,
    }
