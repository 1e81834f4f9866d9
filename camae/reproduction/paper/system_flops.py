"""Training FLOPs per crop of every system: the horizontal axis of the scaling plot (Figure 5, left).

Transformers by the formulas of `camae.model.flops`; convolutional models are counted layer by layer on shapes
alone. A backward pass counts twice the forward, 2 FLOPs per multiply-add.
"""

from __future__ import annotations

import copy

import torch
from torch.utils.flop_counter import FlopCounterMode

from camae.errors import CamaeError
from camae.model.ca_mae import CAMAE
from camae.model.flops import block_flops, decoder_flops, model_flops
from camae.model.interface import Model
from camae.reproduction.systems.mae_vit import ImageViTConfig
from camae.reproduction.systems.mu_net import MUNet
from camae.reproduction.systems.wsl_densenet import DenseNetClassifier


def training_flops(model: Model) -> float:
    """FLOPs of one crop with all of the model's channels, forward and backward, at its own mask ratio.

    Raises CamaeError for a model that is not trained here.
    """
    c = model.config
    if isinstance(model, CAMAE):
        return model_flops(model.config, (len(c.channels),), c.mask_ratio).training
    if isinstance(c, ImageViTConfig):
        return 3 * _image_vit_flops(c)
    if isinstance(model, MUNet | DenseNetClassifier):
        return 3 * _convolutional_flops(model)
    raise CamaeError(f"no count of training FLOPs for {c.name}: it is not trained here")


def _image_vit_flops(c: ImageViTConfig) -> float:
    """Forward: tokenizer and blocks on the visible patches, and for an autoencoder its decoder on all."""
    N, C = c.n_patches, len(c.channels)
    kept, pixels = int(N * (1 - c.mask_ratio)), C * c.patch**2
    flops = 2.0 * kept * pixels * c.width
    flops += c.depth * block_flops(kept + 1, kept + 1, c.width, c.mlp_ratio * c.width)
    if c.family == "mae_vit":
        # The decoder's of one plane, whose head predicts C planes of a masked patch.
        flops += decoder_flops(c, 1, kept) + 2.0 * (N - kept) * c.decoder.width * (pixels - c.patch**2)
    return flops


def _convolutional_flops(model: MUNet | DenseNetClassifier) -> float:
    """Forward of encoder and decoder, or of encoder, neck and head, on one crop; counted on shapes, not computed."""
    c = model.config
    with torch.device("meta"):
        crop = torch.empty(1, len(c.channels), c.crop, c.crop)
        empty = copy.deepcopy(model).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        features = empty.encoder(crop)
        if isinstance(empty, MUNet):
            empty.decoder(features)
        else:
            empty.head(empty.neck(features))
    return float(counter.get_total_flops())
