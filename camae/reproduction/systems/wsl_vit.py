"""ViT classifiers (paper, section 4.1): perturbations from the class token, which is also the embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from camae.dataloader.plane_batch import PlaneBatch
from camae.model.config import find_preset
from camae.model.pooling import pool_tokens
from camae.model.registry import ModelFamily, register
from camae.reproduction.systems.mae_vit import ImageEncoder, ImageViTConfig, vit_presets
from camae.reproduction.systems.weakly_supervised import Classifier, PlateCropLoader
from camae.typed_settings import limited


@dataclass(frozen=True)
class ViTClassifierConfig(ImageViTConfig):
    """Configuration as `ImageViTConfig`. classes: names of the perturbations."""

    family: ClassVar[str] = "wsl_vit"
    classes: tuple[str, ...] = limited((), most=10**6)


PRESETS = vit_presets(ViTClassifierConfig, "wsl_vit_", {8: 0.0, 16: 0.0})


def preset(name: str, **changes: object) -> ViTClassifierConfig:
    """Preset `wsl_vit_{ti,s,b,l}{16,8}`, with fields changed."""
    return find_preset(PRESETS, name, changes)


class ViTClassifier(Classifier):
    """ViT classifier: the encoder of the standard MAE ViT, all patches visible, a linear layer on its class token."""

    config: ViTClassifierConfig
    encoder: ImageEncoder
    crop_loader = PlateCropLoader
    pools = ("cls", "moments")
    pool_reason = "was trained on its class token, and mixes all channels in every token"

    def __init__(self, config: ViTClassifierConfig):
        super().__init__(config)
        self.encoder = ImageEncoder(config, self.backends)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.head = nn.Linear(config.width, len(config.classes))
        nn.init.zeros_(self.head.bias)
        nn.init.trunc_normal_(self.head.weight, std=0.02)

    def logits(self, batch: PlaneBatch, eps: float) -> torch.Tensor:
        """Logits (B, classes)."""
        return self.head(self.pooled_features(batch, "cls", False))

    def pooled_features(self, batch: PlaneBatch, pool: str, interpolate: bool) -> torch.Tensor:
        """Embeddings (B, D): the class token, normed; (B, 2D) of "moments" over the patch tokens."""
        layout, index_BC = self.full_layout(batch), self.plane_index(batch)
        tokens_TD = self.encoder(batch, index_BC, layout, eps=self.eps(batch), interpolate=interpolate)
        return torch.stack(pool_tokens(self.norm(tokens_TD), layout, pool))


register(ModelFamily("wsl_vit", ViTClassifier, ViTClassifierConfig, preset))
