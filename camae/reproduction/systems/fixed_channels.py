"""What models of a fixed channel set share: which plane goes where, standardized images, masks over all channels.

A model with C channels needs each of them in every image. `channel_map` {model's channel: image's channel} says
where a channel comes from in a screen with other names; one image channel may serve twice, as the paper did for
the five stains of JUMP and a model of six.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, TypeVar

import torch

from camae.dataloader.plane_batch import PlaneBatch, ValueRange
from camae.errors import CamaeError
from camae.kernels.patches import plane_statistics_reference
from camae.kernels.reconstruction_loss import reconstruction_losses
from camae.model.ca_mae import channel_lists, split_images
from camae.model.interface import Image, Images, Model
from camae.model.token_layout import TokenLayout, masked_layout

Config = TypeVar("Config")


@dataclass(frozen=True)
class SystemConfig:
    """Settings that every model of a fixed channel set has. `patch` is the mask's unit, in pixels as `crop`."""

    family: ClassVar[str] = ""
    crop: int = 256
    patch: int = 16
    mask_ratio: float = 0.0
    alpha: float = 0.0
    standardization: str = "own"
    channels: tuple[str, ...] = ()
    channel_map: dict[str, str] = field(default_factory=dict)
    name: str = "custom"

    @property
    def n_patches(self) -> int:
        """N, patches per plane."""
        return (self.crop // self.patch) ** 2

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with the family that `from_dict` does not need."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()} | {
            "family": self.family
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Any:
        """The inverse of `to_dict`; unknown names are an error."""
        return changed(cls(), values)


def changed(base: Config, changes: Mapping[str, Any]) -> Config:
    """A configuration with fields changed; lists become tuples. Raises CamaeError for an unknown field."""
    known = {f.name for f in fields(base)}  # type: ignore[arg-type]
    if unknown := set(changes) - known:
        raise CamaeError(
            f"unknown model settings {sorted(unknown)}; known ones are {', '.join(sorted(known))}"
        )
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
    return replace(base, **plain)  # type: ignore[type-var]


def named(presets: Mapping[str, Config], name: str, changes: Mapping[str, Any]) -> Config:
    """The preset `name` of a table, with fields changed. Raises CamaeError for an unknown name."""
    if name not in presets:
        raise CamaeError(
            f"there is no model preset {name!r}; presets of this family are {', '.join(presets)}"
        )
    return changed(presets[name], changes)


class FixedChannelModel(Model):
    """Model whose input is (B, C, H, W) with C named channels in one order."""

    config: Any

    def __init__(self, config: Any):
        super().__init__(config)
        if not config.channels:
            raise CamaeError(f"{config.name} needs the names of its channels: channels=(...)")

    def check_channels(self, names: Sequence[str]) -> None:
        """Raises CamaeError where a channel of the model has no counterpart among `names`."""
        sources = {c: self.config.channel_map.get(c, c) for c in self.channels}
        if missing := [c for c, source in sources.items() if source not in names]:
            raise CamaeError(
                f"{self.config.name} was made for {', '.join(self.channels)} and the images show {', '.join(names)}: "
                f"say which of these stands for {', '.join(missing)} with channel_map"
            )

    def plane_index(self, batch: PlaneBatch) -> torch.Tensor:
        """(B, C) which plane of the batch is each channel of each sample. Raises CamaeError where one is missing."""
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
        """One token per patch and sample, all visible."""
        B, N = batch.n_samples, self.n_patches(batch)
        return TokenLayout((1,) * B, N, (N,) * B, None, batch.planes_KHW.device)

    def images(self, batch: PlaneBatch, eps: float) -> torch.Tensor:
        """(B, C, H, W) float32, every plane standardized over itself."""
        mean_K, var_K = plane_statistics_reference(batch.planes_KHW)
        rstd_K = (var_K + eps**2).rsqrt()
        centered_KHW = batch.planes_KHW.to(torch.float64) - mean_K[:, None, None]
        return (centered_KHW * rstd_K[:, None, None]).float()[self.plane_index(batch)]


class FixedChannelAutoencoder(FixedChannelModel):
    """Masks patches of all channels together and learns to fill them in: the loss of CA-MAE, on those patches."""

    def predict(self, batch: PlaneBatch, layout: TokenLayout, eps: float) -> torch.Tensor:
        """(B*N, C*P*P) pixels of every patch, in self-standardized units."""
        raise CamaeError(f"{self.config.name} cannot reconstruct")

    def sample_layout(self, batch: PlaneBatch, mask_ratio: float, noise_L: torch.Tensor) -> TokenLayout:
        """Which of the N patches of each sample are visible.

        noise_L: at least B*N uniform numbers, packed by sample; the smallest stay visible.
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
        """Eq. 1-3 of the paper over the masked patches of every channel, as `CAMAE.batch_loss`."""
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

    def reconstruct(
        self,
        images: Images,
        channels: Sequence[str] | Sequence[Sequence[str]],
        noise: Image | Sequence[Image] | None = None,
        mask_ratio: float = 0.75,
        *,
        value_range: ValueRange | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `CAMAE.reconstruct`: patches (B, C*N, P*P) and mask (B, C*N), here the same for all channels.

        noise: (B, at least N); the first N of each sample decide.
        """
        samples = split_images(images)
        batch = PlaneBatch.from_images(samples, channel_lists(channels, samples), value_range=value_range).to(
            self.device
        )
        B, C, N = batch.n_samples, len(self.channels), self.n_patches(batch)
        noise_BN = torch.rand(B, N) if noise is None else torch.as_tensor(noise).reshape(B, -1)[:, :N]
        layout = self.sample_layout(batch, mask_ratio, noise_BN.flatten())
        pred_LCP2 = self.predict(batch, layout, self.eps(batch)).unflatten(1, (C, -1))
        mask_L = torch.ones(B * N, device=pred_LCP2.device)
        mask_L[layout.kept] = 0
        patches = pred_LCP2.unflatten(0, (B, N)).transpose(1, 2).flatten(1, 2)
        return patches, mask_L.reshape(B, 1, N).expand(B, C, N).flatten(1)
