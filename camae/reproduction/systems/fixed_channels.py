"""Base classes of models with a fixed channel set: channel order, standardized images, masks over all channels.

A model with C channels needs each of them in every image. `channel_map` {model's channel: image's channel} says
where a channel comes from in a screen with other names; one image channel may serve twice, as the paper did for
the five stains of JUMP and a model of six.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import ClassVar, Protocol, Self

import torch

from camae.dataloader.plane_batch import PlaneBatch, ValueRange
from camae.errors import CamaeError
from camae.kernels.reconstruction_loss import reconstruction_losses
from camae.model.config import MOST_CHANNELS, MOST_CROP, MOST_PATCH, STANDARDIZATIONS, WHERE, with_changes
from camae.model.image_arrays import image_batch
from camae.model.interface import ChannelNames, Config, Images, Model
from camae.model.standardization import plane_statistics
from camae.model.token_layout import TokenLayout, masked_layout
from camae.typed_settings import check_settings, limited


@dataclass(frozen=True)
class SystemConfig:
    """Configuration that every convolutional or timm model has. `crop` and `patch`, the mask's unit, in pixels."""

    family: ClassVar[str] = ""
    crop: int = limited(256, low=1, high=MOST_CROP)
    patch: int = limited(16, low=1, high=MOST_PATCH)
    mask_ratio: float = limited(0.0, low=0, below=1)
    alpha: float = limited(0.0, low=0, below=1)
    standardization: str = limited("own", choices=STANDARDIZATIONS)
    channels: tuple[str, ...] = limited((), most=MOST_CHANNELS)
    channel_map: dict[str, str] = field(default_factory=dict)
    name: str = "custom"

    def __post_init__(self) -> None:
        check_settings(self, WHERE)
        if len(set(self.channels)) < len(self.channels):
            raise CamaeError(f"{WHERE}channel names repeat: {list(self.channels)}")

    @property
    def n_blocks(self) -> int:
        """Blocks whose number the configuration sets."""
        return 0

    @property
    def n_patches(self) -> int:
        """N, patches per plane."""
        return (self.crop // self.patch) ** 2

    def to_dict(self) -> dict[str, object]:
        """Fields as JSON values, and the family, by which a model file finds the class."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return values | {"family": self.family}

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Self:
        """Inverse of `to_dict`, without the family. Raises CamaeError for unknown names."""
        return with_changes(cls(), values)


class FixedChannelConfig(Config, Protocol):
    """Configuration of a model of a fixed channel set."""

    @property
    def channel_map(self) -> dict[str, str]:
        """{model's channel: image's channel} where the names differ."""


class FixedChannelModel(Model):
    """Model whose input is (B, C, H, W) with C named channels in one order.

    pools: poolings it has. pool_reason: why it has no others, for the error.
    """

    config: FixedChannelConfig
    pools: ClassVar[tuple[str, ...]] = ("mean",)
    pool_reason: ClassVar[str] = "has one embedding"

    def __init__(self, config: FixedChannelConfig):
        super().__init__(config)
        if not config.channels:
            raise CamaeError(f"{config.name} needs the names of its channels: channels=(...)")

    def check_channels(self, names: Sequence[str]) -> None:
        """Raise CamaeError where a channel of the model has no counterpart among `names`."""
        sources = {c: self.config.channel_map.get(c, c) for c in self.channels}
        if missing := [c for c, source in sources.items() if source not in names]:
            raise CamaeError(
                f"{self.config.name} was made for {', '.join(self.channels)} and the images show {', '.join(names)}: "
                f"say which of these stands for {', '.join(missing)} with channel_map"
            )

    def embed_batch(self, batch: PlaneBatch, pool: str, *, interpolate: bool = False) -> list[torch.Tensor]:
        """One float32 vector (D,) per sample. Raises CamaeError for a pooling that is not one of `pools`."""
        if pool not in self.pools:
            names = " or ".join(map(repr, self.pools))
            raise CamaeError(f"{self.config.name} {self.pool_reason}: use pool={names}")
        return list(self.pooled_features(batch, pool, interpolate).float().unbind(0))

    @abstractmethod
    def pooled_features(self, batch: PlaneBatch, pool: str, interpolate: bool) -> torch.Tensor:
        """Embeddings (B, D), of one of `pools`; `interpolate` as in `embed_batch`."""

    def plane_index(self, batch: PlaneBatch) -> torch.Tensor:
        """Plane of each channel of each sample, (B, C) int64. Raises CamaeError where one is missing."""
        self.check_channels(batch.channels)
        K, device = len(batch.planes_KHW), batch.planes_KHW.device
        table_BV = torch.full((batch.n_samples, len(batch.channels)), -1, device=device)
        table_BV[batch.sample_K, batch.channel_K] = torch.arange(K, device=device)
        columns = [batch.channels.index(self.config.channel_map.get(c, c)) for c in self.channels]
        index_BC = table_BV[:, columns]
        if bool((index_BC < 0).any()):
            raise CamaeError(f"{self.config.name} needs all of {', '.join(self.channels)} in every image")
        return index_BC

    def full_layout(self, batch: PlaneBatch) -> TokenLayout:
        """Token layout of one token per patch and sample, all visible."""
        B, N = batch.n_samples, self.n_patches(batch)
        return TokenLayout((1,) * B, N, (N,) * B, None, batch.planes_KHW.device)

    def images(self, batch: PlaneBatch, eps: float) -> torch.Tensor:
        """Images (B, C, H, W) float32, every plane standardized over itself."""
        mean_K, var_K = plane_statistics(batch.planes_KHW, self.backends.tokenize)
        rstd_K = (var_K + eps**2).rsqrt()
        centered_KHW = batch.planes_KHW.to(torch.float64) - mean_K[:, None, None]
        return (centered_KHW * rstd_K[:, None, None]).float()[self.plane_index(batch)]


class FixedChannelAutoencoder(FixedChannelModel):
    """Masked autoencoder of a fixed channel set: patches of all channels are masked together; the loss of CA-MAE."""

    @abstractmethod
    def predict(self, batch: PlaneBatch, layout: TokenLayout, eps: float) -> torch.Tensor:
        """Predicted pixels (B*N, C*P*P) of every patch, in self-standardized units."""

    def sample_layout(self, batch: PlaneBatch, mask_ratio: float, noise_L: torch.Tensor) -> TokenLayout:
        """Layout of the visible ones of the N patches of each sample.

        noise_L: at least B*N uniform numbers, packed by sample; the smallest stay visible.
        Raises CamaeError for a mask ratio that leaves none visible or none masked.
        """
        B, N = batch.n_samples, self.n_patches(batch)
        one_plane = PlaneBatch(
            batch.planes_KHW[:B], torch.arange(B), torch.zeros(B, dtype=torch.long), ("image",)
        )
        layout = masked_layout(one_plane, N, mask_ratio, noise_L[: B * N])
        if 0 in layout.kept_per_sample or 0 in layout.masked_per_sample:
            raise CamaeError(f"mask_ratio {mask_ratio} leaves no visible or no masked patch of {N}")
        return layout

    def forward(
        self,
        batch: PlaneBatch,
        noise: torch.Tensor,
        *,
        mask_ratio: float | None = None,
        alpha: float | None = None,
        n_samples: int | None = None,
    ) -> dict[str, torch.Tensor]:
        """Reconstruction loss (paper, Eq. 1-3) over the masked patches of every channel, as `CAMAE.batch_loss`."""
        c = self.config
        layout = self.sample_layout(batch, c.mask_ratio if mask_ratio is None else mask_ratio, noise)
        eps, index_BC = self.eps(batch), self.plane_index(batch)
        B, C = index_BC.shape
        pred_MCP2 = self.predict(batch, layout, eps)[layout.masked].unflatten(1, (C, -1))
        sample_M, patch_M = layout.masked // layout.n_patches, layout.masked % layout.n_patches
        counts = torch.tensor(layout.masked_per_sample)
        weight_M = (1.0 / (counts.double() * C * (n_samples or B))).repeat_interleave(counts)
        total, mse, fourier = reconstruction_losses(
            pred_MCP2.flatten(0, 1),
            batch.planes_KHW,
            index_BC[sample_M].flatten(),
            patch_M.repeat_interleave(C),
            c.alpha if alpha is None else alpha,
            eps=eps,
            weight_M=weight_M.repeat_interleave(C).to(layout.device),
            backend=self.backends.loss,
        )
        return {"total": total, "mse": mse, "fourier": fourier}

    @torch.no_grad()
    def reconstruct(
        self,
        images: Images,
        channels: ChannelNames,
        noise: Images | None = None,
        mask_ratio: float = 0.75,
        *,
        value_range: ValueRange | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `CAMAE.reconstruct`: patches (B, C*N, P*P) and mask (B, C*N), here the same for all channels.

        noise: (B, at least N); the first N of each sample decide.
        """
        batch = image_batch(images, channels, self.device, value_range)
        B, C, N = batch.n_samples, len(self.channels), self.n_patches(batch)
        noise_BN = torch.rand(B, N) if noise is None else torch.as_tensor(noise).reshape(B, -1)[:, :N]
        layout = self.sample_layout(batch, mask_ratio, noise_BN.flatten())
        pred_LCP2 = self.predict(batch, layout, self.eps(batch)).unflatten(1, (C, -1))
        mask_L = torch.ones(B * N, device=pred_LCP2.device)
        mask_L[layout.kept] = 0
        patches = pred_LCP2.unflatten(0, (B, N)).transpose(1, 2).flatten(1, 2)
        return patches, mask_L.reshape(B, 1, N).expand(B, C, N).flatten(1)
