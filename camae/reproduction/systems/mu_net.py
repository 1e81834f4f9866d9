"""MU-Nets (paper, section 4.2): masked autoencoders with a U-Net.

The paper gives the widths (32/64/128/256/512, and a level of 1,024 for L), "the decoder mirrors the encoder", and
52 M and 135 M parameters, but not the block. Here a level is a number of residual blocks of two 3 x 3 convolutions
with group norms; levels are joined by a strided convolution down and a transposed one up, and the decoder sees the
encoder's features beside its own. The depth is the one whose count is nearest to the paper's (`nearest_depth`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import nn

from camae.dataloader.plane_batch import PlaneBatch
from camae.errors import CamaeError
from camae.model.config import find_preset
from camae.model.pooling import moments
from camae.model.registry import ModelFamily, register
from camae.model.token_layout import TokenLayout
from camae.reproduction.systems.fixed_channels import FixedChannelAutoencoder, SystemConfig
from camae.typed_settings import limited

WIDTHS_M = (32, 64, 128, 256, 512)
WIDTHS_L = (*WIDTHS_M, 1024)
PAPER_PARAMETERS = {"mu_net_m": 52e6, "mu_net_l": 135e6}
_GROUPS = 8


@dataclass(frozen=True)
class MUNetConfig(SystemConfig):
    """Configuration of a MU-Net.

    widths: features of each level, from the full image down. depth, decoder_depth: residual blocks of an encoder's
    and of a decoder's level. `patch` is the side of a masked section in pixels.
    """

    family: ClassVar[str] = "mu_net"
    mask_ratio: float = limited(0.25, low=0, below=1)
    alpha: float = limited(0.0, low=0, below=1)
    widths: tuple[int, ...] = limited(WIDTHS_M, low=_GROUPS, high=2**16, most=12)
    depth: int = limited(2, low=0, high=256)
    decoder_depth: int = limited(2, low=0, high=256)

    @property
    def n_blocks(self) -> int:
        """Residual blocks of all levels."""
        return len(self.widths) * self.depth + max(0, len(self.widths) - 1) * self.decoder_depth


PRESETS = {
    "mu_net_m": MUNetConfig(depth=6, decoder_depth=6, name="mu_net_m"),
    "mu_net_l": MUNetConfig(widths=WIDTHS_L, depth=4, decoder_depth=4, name="mu_net_l"),
    "mu_net_ti": MUNetConfig(widths=(16, 32, 64, 96), depth=1, decoder_depth=1, name="mu_net_ti"),
}


def preset(name: str, **changes: object) -> MUNetConfig:
    """Preset `mu_net_m`, `mu_net_l`, or `mu_net_ti` for laptops, with fields changed."""
    return find_preset(PRESETS, name, changes)


class ResidualBlock(nn.Module):
    """Pre-activation residual block: x + conv(gelu(norm(conv(gelu(norm(x)))))), 3 x 3."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(_GROUPS, width), nn.GroupNorm(_GROUPS, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x_BDHW: torch.Tensor) -> torch.Tensor:
        """Features (B, D, H, W)."""
        y = self.conv1(F.gelu(self.norm1(x_BDHW)))
        return x_BDHW + self.conv2(F.gelu(self.norm2(y)))


def _blocks(width: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(width) for _ in range(depth)))


class UNetEncoder(nn.Module):
    """U-Net encoder: (B, C, H, W) to the features of every level, the last one the bottleneck."""

    def __init__(self, channels: int, widths: tuple[int, ...], depth: int):
        super().__init__()
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.levels = nn.ModuleList(_blocks(w, depth) for w in widths)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in itertools.pairwise(widths))
        self.norm = nn.GroupNorm(_GROUPS, widths[-1])

    def forward(self, x_BCHW: torch.Tensor) -> list[torch.Tensor]:
        """Features (B, width, H / 2^i, W / 2^i) of every level i."""
        x = self.levels[0](self.stem(x_BCHW))
        features = [x]
        for down, level in zip(self.down, list(self.levels)[1:], strict=True):
            x = level(down(x))
            features.append(x)
        features[-1] = self.norm(x)
        return features


class UNetDecoder(nn.Module):
    """U-Net decoder: the mirror of the encoder with skip connections; returns (B, C, H, W)."""

    def __init__(self, channels: int, widths: tuple[int, ...], depth: int):
        super().__init__()
        pairs = list(itertools.pairwise(widths))[::-1]
        self.up = nn.ModuleList(nn.ConvTranspose2d(below, w, 2, stride=2) for w, below in pairs)
        self.join = nn.ModuleList(nn.Conv2d(2 * w, w, 3, padding=1) for w, _ in pairs)
        self.levels = nn.ModuleList(_blocks(w, depth) for w, _ in pairs)
        self.head = nn.Conv2d(widths[0], channels, 1)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(cast(torch.Tensor, self.head.bias))

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Images (B, C, H, W) from the features of every level."""
        x = features[-1]
        for up, join, level, skip in zip(self.up, self.join, self.levels, features[-2::-1], strict=True):
            x = level(join(torch.cat([up(x), skip], 1)))
        return self.head(x)


class MUNet(FixedChannelAutoencoder):
    """Masked U-Net: zeros (each plane's mean) where patches are masked. Embedding: the bottleneck's mean or moments."""

    config: MUNetConfig
    pools = ("mean", "moments")
    pool_reason = "embeds the bottleneck, which mixes all channels"

    def __init__(self, config: MUNetConfig):
        super().__init__(config)
        side = 2 ** max(0, len(config.widths) - 1)
        if (
            not config.widths
            or config.crop % side
            or config.crop % config.patch
            or any(w % _GROUPS for w in config.widths)
        ):
            raise CamaeError(
                f"MU-Net: the crop of {config.crop} px must be a multiple of {side} (its levels) and of the patch, "
                f"{config.patch} px, and widths of {_GROUPS}"
            )
        C = len(config.channels)
        self.encoder = UNetEncoder(C, config.widths, config.depth)
        self.decoder = UNetDecoder(C, config.widths, config.decoder_depth)

    def predict(self, batch: PlaneBatch, layout: TokenLayout, eps: float) -> torch.Tensor:
        """Predicted pixels (B*N, C*P*P) of every patch."""
        P = self.config.patch
        images_BCHW = self.images(batch, eps)
        B, _, H, W = images_BCHW.shape
        visible_L = torch.zeros(B * layout.n_patches, device=images_BCHW.device)
        visible_L[layout.kept] = 1
        visible_B1hw = visible_L.reshape(B, 1, H // P, W // P)
        seen_BCHW = images_BCHW * F.interpolate(visible_B1hw, scale_factor=P, mode="nearest")
        out_BCHW = self.decoder(self.encoder(seen_BCHW))
        tiles = out_BCHW.unflatten(3, (W // P, P)).unflatten(2, (H // P, P))  # B C h P w P
        return tiles.permute(0, 2, 4, 1, 3, 5).reshape(B * layout.n_patches, -1)

    def pooled_features(self, batch: PlaneBatch, pool: str, interpolate: bool) -> torch.Tensor:
        """Embeddings (B, D): the mean over the bottleneck's positions, (B, 2D) of "moments"; nothing is masked."""
        features_BSD = self.encoder(self.images(batch, self.eps(batch)))[-1].float().flatten(2).mT
        return moments(features_BSD) if pool == "moments" else features_BSD.mean(1)


def parameter_count(config: MUNetConfig) -> int:
    """Trainable parameters of a MU-Net, counted without making the tensors."""
    with torch.device("meta"):
        return sum(p.numel() for p in MUNet(config).parameters())


def nearest_depth(
    widths: tuple[int, ...], target: float, depths: Iterable[int] = range(1, 9)
) -> tuple[int, int]:
    """(depth, parameters) of the six-channel MU-Net nearest to `target` parameters, one depth for all levels."""
    six = tuple("ABCDEF")
    counts = {
        d: parameter_count(MUNetConfig(widths=widths, depth=d, decoder_depth=d, channels=six)) for d in depths
    }
    best = min(counts, key=lambda d: abs(counts[d] - target))
    return best, counts[best]


register(ModelFamily("mu_net", MUNet, MUNetConfig, preset))
