"""Standard MAE ViT (He et al.; paper, section 4.2): one token per patch of all channels, in a fixed channel order.

Blocks, positions, loss and loop are those of CA-MAE; only the tokenizer and the mask's unit differ. The decoder is
CA-MAE's without cross-attention: one stack of 8 blocks of width 512, 25.2 M parameters, beside projections.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from camae.dataloader.plane_batch import PlaneBatch
from camae.errors import CamaeError
from camae.kernels._patches import standardized_patches
from camae.model.blocks import Sequences
from camae.model.config import PRESETS as CA_MAE_PRESETS
from camae.model.config import DecoderConfig, ModelConfig
from camae.model.config import preset as ca_mae_preset
from camae.model.decoder import Decoder
from camae.model.encoder import Encoder
from camae.model.registry import ModelFamily, register
from camae.model.token_layout import TokenLayout
from camae.reproduction.systems.fixed_channels import FixedChannelAutoencoder, FixedChannelModel

DECODER = DecoderConfig(width=512, depth=8, heads=16, cross_attention="none")
# Paper, section 4.2: "8x8 and 16x16 patch sizes and 75% and 25% mask ratios, respectively".
MASK_RATIO = {8: 0.75, 16: 0.25}


@dataclass(frozen=True)
class ImageViTConfig(ModelConfig):
    """A ViT over all channels at once; fields as in `ModelConfig`."""

    channel_map: dict[str, str] = field(default_factory=dict)
    family: str = "mae_vit"


PRESETS = [f"mae_vit_{name.removeprefix('ca_mae_vit_')}" for name in CA_MAE_PRESETS]


def preset(name: str, **changes: Any) -> ImageViTConfig:
    """`mae_vit_{ti,s,b,l}{16,8}`, with fields changed. alpha=0 is the paper's plain MAE, 0.01 its "+"."""
    if name not in PRESETS:
        raise CamaeError(
            f"there is no model preset {name!r}; presets of this family are {', '.join(PRESETS)}"
        )
    return vit_config(ImageViTConfig, "ca_" + name, name, changes)


def vit_config(kind: Any, like: str, name: str, changes: dict[str, Any]) -> Any:
    """The encoder of a CA-MAE preset as a configuration of `kind`."""
    of_base = {k: v for k, v in changes.items() if k not in ("channel_map", "classes")}
    patch = CA_MAE_PRESETS[like].patch
    base = ca_mae_preset(like, **({"decoder": asdict(DECODER), "mask_ratio": MASK_RATIO[patch]} | of_base))
    values = {f: getattr(base, f) for f in base.__dataclass_fields__} | {"name": name}
    return kind(**(values | {k: changes[k] for k in ("channel_map", "classes") if k in changes}))


class ImageEncoder(Encoder):
    """The encoder of CA-MAE with a tokenizer over all channels of a patch: N tokens per image instead of C*N."""

    def __init__(self, c: ModelConfig):
        super().__init__(c)
        self.patch_weight_DP2 = nn.Parameter(torch.empty(c.width, len(c.channels) * c.patch**2))
        nn.init.xavier_uniform_(self.patch_weight_DP2)

    def forward(  # type: ignore[override]
        self,
        batch: PlaneBatch,
        index_BC: torch.Tensor,
        layout: TokenLayout,
        *,
        eps: float,
        interpolate: bool = False,
        attention_backend: str | None = None,
    ) -> torch.Tensor:
        """Tokens (T, D) of the last block, packed as `layout` says. index_BC: plane of each channel of each sample."""
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
        sequences = Sequences(layout.cu_seqlens, layout.lengths, layout.sample_T)
        for block in self.blocks:
            tokens_TD = block(tokens_TD, sequences, attention_backend)
        return self.norm(tokens_TD)


class MAEViT(FixedChannelAutoencoder):
    """Masked autoencoder with a ViT over all channels; its embedding is the mean of the patch tokens."""

    def __init__(self, config: ImageViTConfig):
        super().__init__(config)
        self.encoder: ImageEncoder = ImageEncoder(config)
        one_stack = ModelConfig(
            **{k: getattr(config, k) for k in ModelConfig.__dataclass_fields__} | {"channels": ("image",)}
        )
        self.decoder = Decoder(one_stack)
        head = nn.Linear(config.decoder.width, len(config.channels) * config.patch**2)
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        self.decoder.heads = nn.ModuleList([head])

    def predict(self, batch: PlaneBatch, layout: TokenLayout, eps: float) -> torch.Tensor:
        """(B*N, C*P*P) pixels of every patch."""
        tokens_TD = image_tokens(self, batch, layout, eps, False)
        return self.decoder(tokens_TD, layout, ["image"] * layout.n_samples, self.backends.attention)

    def embed_batch(
        self,
        batch: PlaneBatch,
        pool: str,
        *,
        interpolate: bool = False,
    ) -> list[torch.Tensor]:
        """(D,) per sample: the mean of the patch tokens, or with pool="cls" the class token."""
        layout = self.full_layout(batch)
        tokens_TD = image_tokens(self, batch, layout, self.eps(batch), interpolate)
        return pooled(tokens_TD, layout, pool, self.config.name)


def image_tokens(
    model: FixedChannelModel, batch: PlaneBatch, layout: TokenLayout, eps: float, interpolate: bool
) -> torch.Tensor:
    """Encoder tokens (T, D) of a model whose encoder is an `ImageEncoder`."""
    return model.encoder(
        batch,
        model.plane_index(batch),
        layout,
        eps=eps,
        interpolate=interpolate,
        attention_backend=model.backends.attention,
    )


def pooled(tokens_TD: torch.Tensor, layout: TokenLayout, pool: str, name: str) -> list[torch.Tensor]:
    """One vector per sample from fully visible tokens."""
    if pool == "per_channel":
        raise CamaeError(f"{name} mixes all channels in every token: use pool='mean' or 'cls'")
    tokens_BTD = tokens_TD.unflatten(0, (layout.n_samples, -1)).float()
    return list((tokens_BTD[:, 0] if pool == "cls" else tokens_BTD[:, 1:].mean(1)).unbind(0))


register(ModelFamily("mae_vit", MAEViT, ImageViTConfig, preset))
