"""ImageNet ViTs on microscopy (paper, Table 3: "ImageNet-pretrained classifiers").

timm's models with weights from a local file (nothing is downloaded). The three colors of the patch projection
become C channels as timm does it: repeated in turn and scaled by 3/C, so that a gray image gives the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

import torch

from camae.dataloader.plane_batch import PlaneBatch
from camae.errors import CamaeError, MissingFileError
from camae.model.config import find_preset
from camae.model.pooling import moments
from camae.model.registry import ModelFamily, register
from camae.reproduction.systems._torchvision import import_timm
from camae.reproduction.systems.fixed_channels import FixedChannelModel, SystemConfig

# Paper, Table 3; trained on ImageNet-21k (Ridnik et al.), published by timm under these names.
TIMM_NAMES = {
    "imagenet_vit_s16": "vit_small_patch16_224",
    "imagenet_vit_b16": "vit_base_patch16_224",
    "imagenet_vit_b8": "vit_base_patch8_224",
    "imagenet_vit_l16": "vit_large_patch16_224",
    "imagenet_vit_ti16": "vit_tiny_patch16_224",
}


@dataclass(frozen=True)
class ImageNetConfig(SystemConfig):
    """Configuration of a timm ViT. The crop may differ from 224 px: positions are interpolated.

    architecture: timm's name.
    """

    family: ClassVar[str] = "imagenet"
    architecture: str = "vit_small_patch16_224"


PRESETS = {
    name: ImageNetConfig(architecture=timm_name, patch=8 if name.endswith("b8") else 16, name=name)
    for name, timm_name in TIMM_NAMES.items()
}


def preset(name: str, **changes: object) -> ImageNetConfig:
    """Preset `imagenet_vit_{ti16,s16,b16,b8,l16}`, with fields changed."""
    return find_preset(PRESETS, name, changes)


class ImageNetViT(FixedChannelModel):
    """ImageNet classifier of timm without its head. Embedding: the class token after the last norm, or the mean."""

    config: ImageNetConfig
    pools = ("cls", "mean", "moments")
    pool_reason = "mixes all channels in every token"

    def __init__(self, config: ImageNetConfig, weights: Path | None = None):
        super().__init__(config)
        given: dict[str, object] = {}
        if weights is not None:
            given = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(weights)}}
        self.encoder = import_timm().create_model(
            config.architecture,
            in_chans=len(config.channels),
            img_size=config.crop,
            num_classes=0,
            **given,
        )

    def pooled_features(self, batch: PlaneBatch, pool: str, interpolate: bool) -> torch.Tensor:
        """Embeddings (B, D): the class token, or the mean of the patch tokens; (B, 2D) of "moments"."""
        tokens_of = cast(Callable[[torch.Tensor], torch.Tensor], self.encoder.forward_features)
        tokens_BTD = tokens_of(self.images(batch, self.eps(batch))).float()
        if pool == "cls":
            return tokens_BTD[:, 0]
        return moments(tokens_BTD[:, 1:]) if pool == "moments" else tokens_BTD[:, 1:].mean(1)


def load_imagenet(
    name: str, weights: str | Path | None, channels: tuple[str, ...], **changes: object
) -> ImageNetViT:
    """Load an ImageNet ViT: a preset of `TIMM_NAMES` and a weights file of timm (.safetensors, .npz or .pth).

    Raises MissingFileError, saying which file is wanted, when there is none; CamaeError when it does not fit.
    """
    config = preset(name, channels=channels, **changes)
    wanted = f"ImageNet-21k weights of timm's {config.architecture}"
    if weights is None:
        raise MissingFileError(f"no weights: give a file of {wanted}; nothing is downloaded")
    path = Path(weights)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; it should hold {wanted}")
    try:
        return ImageNetViT(config, path).eval()
    except (RuntimeError, OSError, KeyError, ValueError) as error:
        raise CamaeError(f"{path}: does not hold {wanted} ({str(error).splitlines()[0]})") from None


register(ModelFamily("imagenet", ImageNetViT, ImageNetConfig, preset))
