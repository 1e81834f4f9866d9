"""FLOPs of a training crop for every family: the x of the scaling plot (Figure 5, left).

Transformers by the formulas of `camae.model.flops`; convolutional models are counted layer by layer on shapes
alone. A backward pass counts twice the forward, 2 FLOPs per multiply-add.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from camae.errors import CamaeError
from camae.model.ca_mae import CAMAE
from camae.model.flops import block_flops, model_flops


def training_flops(model: Any, mask_ratio: float | None = None) -> float:
    """FLOPs of one crop with all of the model's channels, forward and backward."""
    c = model.config
    mask_ratio = c.mask_ratio if mask_ratio is None else mask_ratio
    if isinstance(model, CAMAE):
        return model_flops(c, (len(c.channels),), mask_ratio).training
    if c.family in ("mae_vit", "wsl_vit"):
        return 3 * _image_vit_flops(c, mask_ratio)
    return 3 * _counted(model)


def _image_vit_flops(c: Any, mask_ratio: float) -> float:
    """Forward: tokenizer and blocks on the visible patches, and for an autoencoder its decoder on all."""
    N, C = c.n_patches, len(c.channels)
    kept, pixels = int(N * (1 - mask_ratio)), C * c.patch**2
    flops = 2 * kept * pixels * c.width
    flops += c.depth * block_flops(kept + 1, kept + 1, c.width, c.mlp_ratio * c.width)
    if c.family == "mae_vit":
        d = c.decoder
        flops += 2 * kept * c.width * d.width + d.depth * block_flops(N, N, d.width, 4 * d.width)
        flops += 2 * (N - kept) * d.width * pixels
    return flops


def _counted(model: Any) -> float:
    """Forward of encoder and decoder or neck on one crop, without computing anything."""
    c = model.config
    if c.family not in ("mu_net", "wsl_densenet"):
        raise CamaeError(f"no count of training FLOPs for {c.name}: it is not trained here")
    with torch.device("meta"):
        empty = type(model)(c).eval()
        crop = torch.empty(1, len(c.channels), c.crop, c.crop)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        features = empty.encoder(crop)
        if c.family == "mu_net":
            empty.decoder(features)
        else:
            empty.head(empty.neck(features))
    return float(counter.get_total_flops())
