"""ViTs trained to classify natural images, on microscopy (paper, Table 3: "ImageNet-pretrained classifiers").

timm's models with weights from a local file (nothing is downloaded). The three colors of the patch projection
become C channels as timm does it: repeated in turn and scaled by 3/C, so that a gray image gives the same tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from camae.dataloader.plane_batch import PlaneBatch
from camae.errors import CamaeError, MissingFileError
from camae.model.registry import ModelFamily, register
from camae.reproduction.systems._torchvision import import_timm
from camae.reproduction.systems.fixed_channels import FixedChannelModel, SystemConfig, named

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
    """architecture: timm's name. The crop may differ from 224 px: positions are interpolated."""

    family: ClassVar[str] = "imagenet"
    architecture: str = "vit_small_patch16_224"


PRESETS = {
    name: ImageNetConfig(architecture=timm_name, patch=8 if name.endswith("b8") else 16, name=name)
    for name, timm_name in TIMM_NAMES.items()
}


def preset(name: str, **changes: Any) -> ImageNetConfig:
    """`imagenet_vit_{ti16,s16,b16,b8,l16}`, with fields changed."""
    return named(PRESETS, name, changes)


class ImageNetViT(FixedChannelModel):
    """A timm ViT without its classes; the embedding is the class token after the last norm."""

    def __init__(self, config: ImageNetConfig, weights: Path | None = None):
        super().__init__(config)
        given: dict[str, Any] = {}
        if weights is not None:
            given = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(weights)}}
        self.encoder: nn.Module = import_timm().create_model(
            config.architecture,
            in_chans=len(config.channels),
            img_size=config.crop,
            num_classes=0,
            **given,
        )

    def embed_batch(
        self,
        batch: PlaneBatch,
        pool: str,
        *,
        interpolate: bool = False,
    ) -> list[torch.Tensor]:
        """(D,) per sample: pool="cls" the class token, "mean" the mean of the patch tokens."""
        if pool not in ("cls", "mean"):
            raise CamaeError(
                f"{self.config.name} mixes all channels in every token: use pool='cls' or 'mean'"
            )
        images_BCHW = self.images(batch, self.eps(batch))
        tokens_BTD = self.encoder.forward_features(images_BCHW).float()  # type: ignore[operator]
        return list((tokens_BTD[:, 0] if pool == "cls" else tokens_BTD[:, 1:].mean(1)).unbind(0))


def load_imagenet(
    name: str, weights: str | Path | None, channels: tuple[str, ...], **changes: Any
) -> ImageNetViT:
    """A model of `TIMM_NAMES` with weights from a file (.safetensors, .npz or .pth of timm), for C channels.

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
