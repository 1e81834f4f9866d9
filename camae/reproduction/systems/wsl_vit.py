"""ViT classifiers (paper, section 4.1): perturbations from the class token, which is also the embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from camae.dataloader.plane_batch import PlaneBatch
from camae.errors import CamaeError
from camae.model.config import PRESETS as CA_MAE_PRESETS
from camae.model.registry import ModelFamily, register
from camae.reproduction.systems.mae_vit import ImageEncoder, ImageViTConfig, image_tokens, pooled, vit_config
from camae.reproduction.systems.weakly_supervised import Classifier, PlateCropLoader


@dataclass(frozen=True)
class ViTClassifierConfig(ImageViTConfig):
    """As `ImageViTConfig`; classes: the perturbations to be named."""

    classes: tuple[str, ...] = ()
    family: str = "wsl_vit"


PRESETS = [f"wsl_vit_{name.removeprefix('ca_mae_vit_')}" for name in CA_MAE_PRESETS]


def preset(name: str, **changes: Any) -> ViTClassifierConfig:
    """`wsl_vit_{ti,s,b,l}{16,8}`, with fields changed."""
    if name not in PRESETS:
        raise CamaeError(
            f"there is no model preset {name!r}; presets of this family are {', '.join(PRESETS)}"
        )
    like = "ca_mae_" + name.removeprefix("wsl_")
    return vit_config(ViTClassifierConfig, like, name, {"mask_ratio": 0.0} | changes)


class ViTClassifier(Classifier):
    """The encoder of the standard MAE ViT, all patches visible, and a linear layer on its class token."""

    crop_loader = PlateCropLoader

    def __init__(self, config: ViTClassifierConfig):
        super().__init__(config)
        self.encoder: ImageEncoder = ImageEncoder(config)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.head = nn.Linear(config.width, len(config.classes))
        nn.init.zeros_(self.head.bias)
        nn.init.trunc_normal_(self.head.weight, std=0.02)

    def logits(self, batch: PlaneBatch, eps: float) -> torch.Tensor:
        """(B, classes)."""
        return self.head(torch.stack(self._class_tokens(batch, eps, False)))

    def embed_batch(
        self,
        batch: PlaneBatch,
        pool: str,
        *,
        interpolate: bool = False,
    ) -> list[torch.Tensor]:
        """(D,) per sample: the class token, as the paper's classifiers; pool="mean" is refused."""
        if pool != "cls":
            raise CamaeError(f"{self.config.name} was trained on its class token: use pool='cls'")
        return self._class_tokens(batch, self.eps(batch), interpolate)

    def _class_tokens(self, batch: PlaneBatch, eps: float, interpolate: bool) -> list[torch.Tensor]:
        layout = self.full_layout(batch)
        tokens_TD = self.norm(image_tokens(self, batch, layout, eps, interpolate))
        return pooled(tokens_TD, layout, "cls", self.config.name)


register(ModelFamily("wsl_vit", ViTClassifier, ViTClassifierConfig, preset))
