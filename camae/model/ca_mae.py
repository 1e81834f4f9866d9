"""Channel-agnostic masked autoencoder: encoder, decoders and loss, on plane batches and on arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NotRequired, Unpack, overload

import numpy as np
import torch

from camae.dataloader.plane_batch import PlaneBatch, ValueRange
from camae.errors import CamaeError
from camae.kernels.patches import standardized_patches
from camae.kernels.reconstruction_loss import patch_losses_reference, reconstruction_losses
from camae.model.backends import Backends
from camae.model.config import ModelConfig, preset
from camae.model.decoder import Decoder
from camae.model.encoder import Encoder, Statistics
from camae.model.image_arrays import image_batch, packed_noise
from camae.model.interface import ChannelNames, Image, Images, LossOptions, Model
from camae.model.pooling import pool_tokens
from camae.model.registry import DEFAULT, ModelFamily, register
from camae.model.standardization import plane_statistics
from camae.model.token_layout import TokenLayout, full_layout, masked_layout

# Patches and mask, as tensors, or as lists where samples have different numbers of channels.
Terms = Callable[[torch.Tensor, TokenLayout], dict[str, torch.Tensor]]
Reconstruction = tuple[torch.Tensor, torch.Tensor] | tuple[list[torch.Tensor], list[torch.Tensor]]


class ReconstructionOptions(LossOptions):
    """Keyword arguments of `CAMAE.forward` and `CAMAE.batch_loss`.

    reduction: "samples" (default), the mean over a sample's masked patches, then over samples; or "tokens", the mean
    over all masked patches, as the released model's. by_plane: also return "plane_2K". hidden_K: (K,) bool on the
    host, planes that are masked whole. terms: further losses from the encoder's tokens, (tokens (T, D), layout) ->
    scalars by name, which are added to "total" and returned, detached, beside it.
    """

    reduction: NotRequired[str]
    by_plane: NotRequired[bool]
    hidden_K: NotRequired[np.ndarray | None]
    terms: NotRequired[Terms | None]


class CAMAE(Model):
    """Channel-agnostic masked autoencoder (paper, section 4.2.2 and Figure 4).

    The encoder takes any distinct channel names; the decoders know those of the configuration.
    """

    config: ModelConfig
    encoder: Encoder

    def __init__(self, config: ModelConfig, backends: Backends | None = None):
        super().__init__(config, backends)
        self.encoder = Encoder(config, self.backends)
        self.decoder = Decoder(config, self.backends)

    def op_sizes(self, decoder: bool = True) -> dict[str, tuple[int, ...]]:
        """As `Model.op_sizes`, with the head dims of the blocks and of the decoders' blocks and cross-attention."""
        c, d = self.config, self.config.decoder
        head_dims = [c.width // c.heads]
        if decoder:
            head_dims += [d.width // d.heads] if d.depth else []
            head_dims += [d.width // d.cross_heads] if d.cross_attention != "none" else []
        return super().op_sizes() | {"attention": tuple(dict.fromkeys(head_dims))}

    def check_channels(self, names: Sequence[str]) -> None:
        """Raise CamaeError for a channel without a decoder."""
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
        statistics: Statistics | None = None,
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
        eps = self.eps(batch)
        return self.encoder.encode_layers(batch, layout, layers, eps=eps, interpolate=interpolate), layout

    def mask(
        self,
        batch: PlaneBatch,
        noise: torch.Tensor,
        mask_ratio: float,
        part: float = 1.0,
        hidden_K: np.ndarray | None = None,
    ) -> TokenLayout:
        """Layout of a masked batch, as `masked_layout`.

        Raises CamaeError for a ratio that is no share, and where a sample keeps no patch.
        """
        if not isinstance(mask_ratio, (int, float)) or not 0 <= mask_ratio <= 1:
            raise CamaeError(f"mask_ratio is {mask_ratio!r}; give a share of the patches, from 0 to 1")
        multiple = self.config.keep_multiple
        layout = masked_layout(batch, self.n_patches(batch), mask_ratio, noise, part, multiple, hidden_K)
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
        hidden_K: np.ndarray | None = None,
        terms: Terms | None = None,
    ) -> dict[str, torch.Tensor]:
        """Reconstruction loss (paper, Eq. 1-3) on the masked patches of a batch.

        noise: (sum of C_i*N,) uniform, packed by sample; the smallest stay visible. Others: `ReconstructionOptions`.
        In training mode with `decoder.part` below 1, an unbiased estimate from a random part of those patches.
        Returns scalars "total" (Eq. 3), and, detached, "mse" (Eq. 1) and "fourier" (Eq. 2); with `by_plane` also
        "plane_2K": per plane the sum of Eq. 3 over its decoded patches, and how many those are.
        Raises CamaeError for a channel without a decoder and a mask ratio that leaves nothing to see or to predict.
        """
        c = self.config
        mask_ratio = c.mask_ratio if mask_ratio is None else mask_ratio
        alpha = c.alpha if alpha is None else alpha
        names_K = batch.names_K
        self.decoder.channel_indices(names_K)
        part = c.decoder.part if self.training else 1.0
        layout = self.mask(batch, noise, mask_ratio, part, hidden_K)
        decoded = layout.decoded
        if sum(decoded.per_sample) == 0:
            raise CamaeError(f"mask_ratio {mask_ratio} masks nothing, so there is no loss; use one above 0")
        plane_M, patch_M = decoded.index_M // layout.n_patches, decoded.index_M % layout.n_patches
        # Once for the tokenizer and the loss: a pass over every pixel.
        statistics = plane_statistics(batch.planes_KHW, self.backends.tokenize)
        tokens_TD, _ = self.encode(batch, layout, statistics=statistics)
        pred_MP2 = self.decoder(tokens_TD, layout, names_K, decoded)
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
        if terms is not None:
            added = terms(tokens_TD, layout)
            losses["total"] = total + torch.stack(list(added.values())).sum()
            losses |= {name: term.detach() for name, term in added.items()}
        if by_plane:
            losses["plane_2K"] = _plane_losses(pred_MP2.detach().float(), batch, plane_M, patch_M, alpha, eps)
        return losses

    def total_patches(self, batch: PlaneBatch) -> int:
        """K*N, patches of all planes of this batch."""
        return len(batch.planes_KHW) * self.n_patches(batch)

    def forward(
        self, batch: PlaneBatch, noise: torch.Tensor, **options: Unpack[ReconstructionOptions]
    ) -> dict[str, torch.Tensor]:
        """`batch_loss`, under the name that wrappers such as DistributedDataParallel call."""
        return self.batch_loss(batch, noise, **options)

    def loss(
        self,
        images: Images,
        channels: ChannelNames,
        noise: Images | None = None,
        mask_ratio: float = 0.75,
        alpha: float = 0.01,
        *,
        reduction: str = "samples",
        value_range: ValueRange | None = None,
    ) -> dict[str, torch.Tensor]:
        """Loss of images (C,H,W), (B,C,H,W) or a list of (C_i,H,W); keys "total", "mse", "fourier".

        noise: (B, C*N) or a list of (C_i*N,), mask 1 where it is not among the smallest; random when omitted.
        Raises CamaeError for shapes, names and noise that do not fit each other, and as `batch_loss`.
        """
        if not isinstance(alpha, (int, float)) or not 0 <= alpha <= 1:
            raise CamaeError(f"alpha is {alpha!r}; give the weight of the Fourier loss, from 0 to 1")
        batch = self.as_batch(images, channels, value_range)
        noise_L = packed_noise(noise, self.total_patches(batch), self.device)
        return self.batch_loss(batch, noise_L, mask_ratio=mask_ratio, alpha=alpha, reduction=reduction)

    @overload
    def reconstruct(
        self,
        images: Image,
        channels: ChannelNames,
        noise: Images | None = None,
        mask_ratio: float = 0.75,
        *,
        hidden: Sequence[str] = (),
        value_range: ValueRange | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]: ...

    @overload
    def reconstruct(
        self,
        images: Sequence[Image],
        channels: ChannelNames,
        noise: Images | None = None,
        mask_ratio: float = 0.75,
        *,
        hidden: Sequence[str] = (),
        value_range: ValueRange | None = None,
    ) -> Reconstruction: ...

    @torch.no_grad()
    def reconstruct(
        self,
        images: Images,
        channels: ChannelNames,
        noise: Images | None = None,
        mask_ratio: float = 0.75,
        *,
        hidden: Sequence[str] = (),
        value_range: ValueRange | None = None,
    ) -> Reconstruction:
        """Predicted patches and mask of images, in self-standardized units.

        hidden: channels that are masked whole; with mask_ratio 0 everything else is seen (an imputed channel).
        Returns (patches (B, C*N, P*P), mask (B, C*N) with 1 = masked), without gradients; without the leading B for a
        single image, and two lists for a ragged list. Raises CamaeError as `loss`, for a hidden channel that no image
        shows, and for an image without any other channel.
        """
        batch = self.as_batch(images, channels, value_range)
        self.check_channels(batch.names_K)
        noise_L = packed_noise(noise, self.total_patches(batch), self.device)
        layout = self.mask(batch, noise_L, mask_ratio, hidden_K=_planes_of(batch, hidden))
        tokens_TD, _ = self.encode(batch, layout)
        pred_LP2 = self.decoder(tokens_TD, layout, batch.names_K)
        mask_L = torch.ones(len(pred_LP2), device=pred_LP2.device)
        mask_L.index_fill_(0, layout.kept, 0.0)
        totals = [c * layout.n_patches for c in layout.planes_per_sample]
        patches, masks = pred_LP2.split(totals), mask_L.split(totals)
        if len(set(totals)) > 1:
            return list(patches), list(masks)
        if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 3:
            return patches[0], masks[0]
        return torch.stack(patches), torch.stack(masks)

    def as_batch(
        self, images: Images, channels: ChannelNames, value_range: ValueRange | None = None
    ) -> PlaneBatch:
        """Plane batch of images on the model's device."""
        return image_batch(images, channels, self.device, value_range)


def _planes_of(batch: PlaneBatch, hidden: Sequence[str]) -> np.ndarray | None:
    """(K,) bool, planes that show a channel of `hidden`; None where none is to be hidden."""
    if isinstance(hidden, str):
        raise CamaeError(f"hidden is the single string {hidden!r}; give a list of channel names")
    if hidden is None or len(hidden) == 0:
        return None
    if unknown := [name for name in hidden if name not in batch.names_K]:
        shown = ", ".join(map(repr, dict.fromkeys(batch.names_K)))
        raise CamaeError(
            f"hidden names channel {unknown[0]!r}, which no image shows; the images show {shown}"
        )
    return np.isin(batch.names_K, list(hidden))


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
    share, decoded = (x.to(layout.device, non_blocking=True) for x in (share / decoded.clamp(min=1), decoded))
    return share.repeat_interleave(decoded, output_size=sum(layout.decoded.per_sample))


register(ModelFamily(DEFAULT, CAMAE, ModelConfig, preset))
