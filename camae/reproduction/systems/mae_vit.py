"""Standard MAE ViT (He et al.; paper, section 4.2): one token per patch of all channels, in a fixed channel order.

Blocks, positions, loss and loop are those of CA-MAE; only the tokenizer and the mask's unit differ. The decoder is
CA-MAE's without cross-attention: one stack of 8 blocks of width 512, 25.2 M parameters, beside projections.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from camae.dataloader.plane_batch import PlaneBatch
from camae.kernels.patches import standardized_patches
from camae.model.backends import Backends
from camae.model.config import PRESETS as CA_MAE_PRESETS
from camae.model.config import DecoderConfig, ModelConfig, find_preset
from camae.model.decoder import Decoder
from camae.model.encoder import TransformerEncoder
from camae.model.pooling import pool_tokens
from camae.model.registry import ModelFamily, register
from camae.model.token_layout import TokenLayout
from camae.reproduction.systems.fixed_channels import FixedChannelAutoencoder

DECODER = DecoderConfig(width=512, depth=8, heads=16, cross_attention="none")
# Paper, section 4.2: "8x8 and 16x16 patch sizes and 75% and 25% mask ratios, respectively".
MASK_RATIO = {8: 0.75, 16: 0.25}


@dataclass(frozen=True)
class ImageViTConfig(ModelConfig):
    """Configuration of a ViT over all channels at once; fields as in `ModelConfig`, channel_map as `SystemConfig`."""

    family: ClassVar[str] = "mae_vit"
    channel_map: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """Fields as JSON values, and the family, by which a model file finds the class."""
        return super().to_dict() | {"family": self.family}


V = TypeVar("V", bound=ImageViTConfig)


def vit_presets(kind: type[V], prefix: str, mask_ratio: Mapping[int, float]) -> dict[str, V]:
    """The encoders of the CA-MAE presets as configurations of `kind`, by name.

    mask_ratio: by side of the patch.
    """
    table = {}
    for base in CA_MAE_PRESETS.values():
        values = {f.name: getattr(base, f.name) for f in fields(base)}
        values |= {"name": prefix + base.name.removeprefix("ca_mae_vit_"), "decoder": DECODER}
        config = kind(**(values | {"mask_ratio": mask_ratio[base.patch]}))
        table[config.name] = config
    return table


PRESETS = vit_presets(ImageViTConfig, "mae_vit_", MASK_RATIO)


def preset(name: str, **changes: object) -> ImageViTConfig:
    """Preset `mae_vit_{ti,s,b,l}{16,8}`, with fields changed. alpha=0 is the paper's plain MAE, 0.01 its "+"."""
    return find_preset(PRESETS, name, changes)


class ImageEncoder(TransformerEncoder):
    """ViT encoder over all channels of a patch: N tokens per image instead of C*N."""

    def __init__(self, c: ModelConfig, backends: Backends | None = None):
        super().__init__(c, len(c.channels) * c.patch**2, backends)

    def forward(
        self,
        batch: PlaneBatch,
        index_BC: torch.Tensor,
        layout: TokenLayout,
        *,
        eps: float,
        interpolate: bool = False,
    ) -> torch.Tensor:
        """Tokens (T, D) of the last block, packed as `layout` says.

        index_BC: (B, C) int64, plane of each channel of each sample. eps: of the self-standardization.
        """
        c, C = self.config, index_BC.shape[1]
        positions_ND = self.positions(batch.planes_KHW.shape[1], batch.planes_KHW.shape[2], interpolate)
        sample_V, patch_V = layout.kept // layout.n_patches, layout.kept % layout.n_patches
        pixels_UP2 = standardized_patches(
            batch.planes_KHW,
            index_BC[sample_V].flatten(),
            patch_V.repeat_interleave(C),
            c.patch,
            eps,
            torch.float32,
        )
        patches_VD = F.linear(pixels_UP2.reshape(len(patch_V), -1), self.patch_weight_DP2, self.patch_bias_D)
        visible_VD = patches_VD + positions_ND[patch_V].to(patches_VD.dtype)
        tokens_TD = visible_VD.new_zeros(sum(layout.lengths), c.width)
        tokens_TD = tokens_TD.index_copy(0, layout.patch_rows, visible_VD)
        cls_BD = self.cls_D.to(tokens_TD.dtype).expand(layout.n_samples, -1)
        tokens_TD = tokens_TD.index_copy(0, layout.class_index, cls_BD)
        return self.norm(self.run_blocks(tokens_TD, layout)[0])


class MAEViT(FixedChannelAutoencoder):
    """Masked autoencoder with a ViT over all channels. Embedding: patch tokens' mean or moments, or class token."""

    config: ImageViTConfig
    encoder: ImageEncoder
    pools = ("mean", "moments", "cls")
    pool_reason = "mixes all channels in every token"

    def __init__(self, config: ImageViTConfig):
        super().__init__(config)
        self.encoder = ImageEncoder(config, self.backends)
        base = {f.name: getattr(config, f.name) for f in fields(ModelConfig)}
        self.decoder = Decoder(ModelConfig(**(base | {"channels": ("image",)})), self.backends)
        head = nn.Linear(config.decoder.width, len(config.channels) * config.patch**2)
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        self.decoder.heads = nn.ModuleList([head])

    def predict(self, batch: PlaneBatch, layout: TokenLayout, eps: float) -> torch.Tensor:
        """Predicted pixels (B*N, C*P*P) of every patch."""
        tokens_TD = self.encoder(batch, self.plane_index(batch), layout, eps=eps)
        return self.decoder(tokens_TD, layout, ["image"] * layout.n_samples)

    def pooled_features(self, batch: PlaneBatch, pool: str, interpolate: bool) -> torch.Tensor:
        """Embeddings (B, D): mean of the patch tokens, or the class token; (B, 2D) of "moments"."""
        layout, index_BC = self.full_layout(batch), self.plane_index(batch)
        tokens_TD = self.encoder(batch, index_BC, layout, eps=self.eps(batch), interpolate=interpolate)
        return torch.stack(pool_tokens(tokens_TD, layout, pool))


register(ModelFamily("mae_vit", MAEViT, ImageViTConfig, preset))
