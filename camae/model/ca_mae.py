"""CAMAE: encoder, decoders and loss tied together, on plane batches and on plain arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from camae.dataloader.plane_batch import PlaneBatch, ValueRange
from camae.errors import CamaeError
from camae.kernels._patches import standardized_patches
from camae.kernels.reconstruction_loss import patch_losses_reference, reconstruction_losses
from camae.model.backends import Backends
from camae.model.config import ModelConfig, preset
from camae.model.decoder import Decoder
from camae.model.encoder import Encoder
from camae.model.interface import Image, Images, Model
from camae.model.pooling import pool_tokens
from camae.model.registry import DEFAULT, ModelFamily, register
from camae.model.standardization import plane_statistics
from camae.model.token_layout import TokenLayout, full_layout, masked_layout


class CAMAE(Model):
    """Channel-agnostic masked autoencoder (paper, section 4.2.2 and Figure 4)."""

    config: ModelConfig
    encoder: Encoder

    def __init__(self, config: ModelConfig, backends: Backends | None = None):
        super().__init__(config, backends)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def check_channels(self, names: Sequence[str]) -> None:
        """Raises CamaeError for a channel that no decoder was made for."""
        self.decoder.channel_indices(names)

    def embed_batch(self, batch: PlaneBatch, pool: str, *, interpolate: bool = False) -> list[torch.Tensor]:
        """One float32 vector per sample, pooled from its tokens: (D,), or (C, D) for "per_channel"."""
        return pool_tokens(*self.encode(batch, interpolate=interpolate), pool)

    def encode(
        self,
        batch: PlaneBatch,
        layout: TokenLayout | None = None,
        *,
        interpolate: bool = False,
        statistics: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, TokenLayout]:
        """Encoder tokens (T, D) and their layout; all tokens visible unless `layout` says otherwise.

        statistics: mean and variance of the planes, (K,) float64 each, where the caller has them.
        Raises CamaeError for planes that are not of the model's crop, unless `interpolate`.
        """
        layout = layout or full_layout(batch, self.n_patches(batch))
        tokens = self.encoder(
            batch,
            layout,
            eps=self.eps(batch),
            interpolate=interpolate,
            tokenize_backend=self.backends.tokenize,
            attention_backend=self.backends.attention,
            statistics=statistics,
        )
        return tokens, layout

    def encode_layers(
        self,
        batch: PlaneBatch,
        layers: tuple[int, ...],
        layout: TokenLayout | None = None,
        *,
        interpolate: bool = False,
    ) -> tuple[list[torch.Tensor], TokenLayout]:
        """Tokens (T, D) of the blocks numbered `layers`, in ascending order, and their layout, as `encode`."""
        layout = layout or full_layout(batch, self.n_patches(batch))
        tokens = self.encoder(
            batch,
            layout,
            eps=self.eps(batch),
            interpolate=interpolate,
            tokenize_backend=self.backends.tokenize,
            attention_backend=self.backends.attention,
            layers=layers,
        )
        return tokens, layout

    def _masked_layout(
        self, batch: PlaneBatch, noise: torch.Tensor, mask_ratio: float, part: float
    ) -> TokenLayout:
        multiple = self.config.keep_multiple
        layout = masked_layout(batch, self.n_patches(batch), mask_ratio, noise, part, multiple)
        if 0 in layout.kept_per_sample:
            raise CamaeError(f"mask_ratio {mask_ratio} leaves a sample without a visible patch")
        return layout

    def batch_loss(
        self,
        batch: PlaneBatch,
        noise: torch.Tensor,
        *,
        mask_ratio: float | None = None,
        alpha: float | None = None,
        n_samples: int | None = None,
        reduction: str = "samples",
        by_plane: bool = False,
    ) -> dict[str, torch.Tensor]:
        """Eq. 1-3 of the paper on the masked patches of a batch.

        noise: (sum of C_i*N,) uniform, packed by sample; the smallest stay visible.
        n_samples: what the sum over samples is divided by (the global count under accumulation and ranks);
            default this batch's.
        reduction: "samples" = mean over a sample's masked patches, then over samples; "tokens" = over all
            masked patches, as the released model does.
        In training mode with `decoder.part` below 1, an unbiased estimate from a random part of those patches.
        Returns scalars "total" (Eq. 3), and, detached, "mse" (Eq. 1) and "fourier" (Eq. 2); with `by_plane` also
        "plane_2K": per plane the sum of Eq. 3 over its decoded patches, and how many those are.
        """
        c = self.config
        mask_ratio = c.mask_ratio if mask_ratio is None else mask_ratio
        alpha = c.alpha if alpha is None else alpha
        names_K = batch.names_K
        self.decoder.channel_indices(names_K)
        part = c.decoder.part if self.training else 1.0
        layout = self._masked_layout(batch, noise, mask_ratio, part)
        decoded = layout.decoded
        if sum(decoded.per_sample) == 0:
            raise CamaeError(f"mask_ratio {mask_ratio} masks nothing, so there is no loss; use one above 0")
        plane_M, patch_M = decoded.index_M // layout.n_patches, decoded.index_M % layout.n_patches
        # Once for the tokenizer and the loss: a pass over every pixel.
        statistics = plane_statistics(batch.planes_KHW, self.backends.tokenize)
        tokens_TD, _ = self.encode(batch, layout, statistics=statistics)
        pred_MP2 = self.decoder(tokens_TD, layout, names_K, self.backends.attention, decoded)
        eps = self.eps(batch)
        total, mse, fourier = reconstruction_losses(
            pred_MP2,
            batch.planes_KHW,
            plane_M,
            patch_M,
            alpha,
            eps=eps,
            weight_M=_weights(layout, n_samples, reduction),
            statistics=statistics,
            backend=self.backends.loss,
        )
        losses = {"total": total, "mse": mse, "fourier": fourier}
        if by_plane:
            losses["plane_2K"] = _plane_losses(pred_MP2.detach().float(), batch, plane_M, patch_M, alpha, eps)
        return losses

    def forward(self, batch: PlaneBatch, noise: torch.Tensor, **options) -> dict[str, torch.Tensor]:
        """`batch_loss`, under the name that wrappers such as DistributedDataParallel call."""
        return self.batch_loss(batch, noise, **options)

    def loss(
        self,
        images: Images,
        channels: Sequence[str] | Sequence[Sequence[str]],
        noise: Image | Sequence[Image] | None = None,
        mask_ratio: float = 0.75,
        alpha: float = 0.01,
        *,
        reduction: str = "samples",
        value_range: ValueRange | None = None,
    ) -> dict[str, torch.Tensor]:
        """Loss of images (C,H,W), (B,C,H,W) or a list of (C_i,H,W); keys "total", "mse", "fourier".

        noise: (B, C*N) or a list of (C_i*N,), mask 1 where it is not among the smallest; random when omitted.
        """
        batch = self.as_batch(images, channels, value_range)
        return self.batch_loss(
            batch,
            self._noise(batch, noise),
            mask_ratio=mask_ratio,
            alpha=alpha,
            reduction=reduction,
        )

    def reconstruct(
        self,
        images: Images,
        channels: Sequence[str] | Sequence[Sequence[str]],
        noise: Image | Sequence[Image] | None = None,
        mask_ratio: float = 0.75,
        *,
        value_range: ValueRange | None = None,
    ) -> tuple:
        """Predicted patches and mask of images, in self-standardized units.

        Returns (patches (B, C*N, P*P), mask (B, C*N) with 1 = masked); without the leading B for a single
        image, and two lists for a ragged list.
        """
        batch = self.as_batch(images, channels, value_range)
        names_K = batch.names_K
        self.decoder.channel_indices(names_K)
        layout = self._masked_layout(batch, self._noise(batch, noise), mask_ratio, 1.0)
        tokens_TD, _ = self.encode(batch, layout)
        pred_LP2 = self.decoder(tokens_TD, layout, names_K, self.backends.attention)
        mask_L = torch.ones(len(pred_LP2), device=pred_LP2.device)
        mask_L[layout.kept] = 0
        totals = [c * layout.n_patches for c in layout.planes_per_sample]
        patches, masks = pred_LP2.split(totals), mask_L.split(totals)
        if isinstance(images, (list, tuple)) and len(set(totals)) > 1:
            return list(patches), list(masks)
        if not isinstance(images, (list, tuple)) and images.ndim == 3:  # type: ignore[union-attr]
            return patches[0], masks[0]
        return torch.stack(patches), torch.stack(masks)

    def as_batch(
        self,
        images: Images,
        channels: Sequence[str] | Sequence[Sequence[str]],
        value_range: ValueRange | None = None,
    ) -> PlaneBatch:
        """Plain arrays as a plane batch on the model's device."""
        samples = split_images(images)
        names = channel_lists(channels, samples)
        return PlaneBatch.from_images(samples, names, value_range=value_range).to(self.device)

    def _noise(self, batch: PlaneBatch, noise: Image | Sequence[Image] | None) -> torch.Tensor:
        total = len(batch.planes_KHW) * self.n_patches(batch)
        if noise is None:
            return torch.rand(total, device=batch.planes_KHW.device)
        parts = noise if isinstance(noise, (list, tuple)) else [noise]
        flat = torch.cat([torch.as_tensor(n).reshape(-1) for n in parts]).to(batch.planes_KHW.device)
        if len(flat) != total:
            raise CamaeError(f"noise has {len(flat)} values but the images have {total} patches")
        return flat


def _plane_losses(
    pred_MP2: torch.Tensor,
    batch: PlaneBatch,
    plane_M: torch.Tensor,
    patch_M: torch.Tensor,
    alpha: float,
    eps: float,
) -> torch.Tensor:
    """(2, K): sums of the patches' losses, and their counts."""
    side = math.isqrt(pred_MP2.shape[1])
    target_MP2 = standardized_patches(batch.planes_KHW, plane_M, patch_M, side, eps, torch.float32)
    mse_M, fourier_M = patch_losses_reference(pred_MP2, target_MP2)
    loss_M = (1 - alpha) * mse_M + alpha * fourier_M
    sums_2K = loss_M.new_zeros(2, len(batch.planes_KHW))
    return sums_2K.index_add_(1, plane_M, torch.stack([loss_M, torch.ones_like(loss_M)]))


def _weights(layout: TokenLayout, n_samples: int | None, reduction: str) -> torch.Tensor:
    """Weight of every decoded patch in the loss: a decoded one stands for all masked ones of its sample."""
    if reduction not in ("samples", "tokens"):
        raise CamaeError(f"reduction {reduction!r} is not 'samples' or 'tokens'")
    decoded, masked = torch.tensor(layout.decoded.per_sample), torch.tensor(layout.masked_per_sample)
    if reduction == "tokens":
        share = masked.double() / masked.sum()
    else:
        share = torch.full((layout.n_samples,), 1.0 / (n_samples or layout.n_samples), dtype=torch.float64)
    weights = (share / decoded.clamp(min=1)).repeat_interleave(decoded)
    return weights.to(layout.device, non_blocking=True)


def split_images(images: Images) -> list[Image]:
    """(C,H,W), (B,C,H,W) or a list of (C_i,H,W) as a list of (C_i,H,W)."""
    if isinstance(images, (list, tuple)):
        if not images:
            raise CamaeError("the list of images is empty")
        for i, image in enumerate(images):
            if image.ndim != 3:
                raise CamaeError(
                    f"image {i} of the list has shape {tuple(image.shape)}; each must be (C, H, W)"
                )
        return list(images)
    if images.ndim == 3:  # type: ignore[union-attr]
        return [images]  # type: ignore[list-item]
    if images.ndim == 4:  # type: ignore[union-attr]
        return list(images)  # type: ignore[arg-type]
    raise CamaeError(
        f"images have shape {tuple(images.shape)}; give (C, H, W), (B, C, H, W) or a list of (C, H, W)"  # type: ignore[union-attr]
    )


def channel_lists(
    channels: Sequence[str] | Sequence[Sequence[str]], samples: Sequence[Image]
) -> list[list[str]]:
    """One list of names per image, from names shared by all or one list each.

    Raises CamaeError for a wrong count or names that repeat within an image.
    """
    if isinstance(channels, str):
        raise CamaeError(f"channels is the single string {channels!r}; give a list of names, one per plane")
    shared = all(isinstance(name, str) for name in channels)
    lists: list[list[str]]
    lists = [list(channels)] * len(samples) if shared else [list(names) for names in channels]  # type: ignore[arg-type]
    if len(lists) != len(samples):
        raise CamaeError(f"{len(lists)} lists of channel names for {len(samples)} images")
    for i, (names, image) in enumerate(zip(lists, samples, strict=True)):
        if len(names) != image.shape[0]:
            raise CamaeError(
                f"image {i} has {image.shape[0]} planes but {len(names)} channel names: {', '.join(names)}"
            )
        if len(set(names)) != len(names):
            raise CamaeError(f"image {i}: channel names repeat: {', '.join(names)}")
    return lists


register(ModelFamily(DEFAULT, CAMAE, ModelConfig, preset))
