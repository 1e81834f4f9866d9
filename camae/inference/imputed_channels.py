"""Imputed channels: planes that an image lacks are predicted from its others, and encoded with them.

An image without a channel gets tokens for that channel too, and its other channels are encoded beside what they were
trained beside. What is known of the channel is what the others say of it: no information is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from camae.dataloader.plane_batch import PlaneBatch, ValueRange
from camae.errors import CamaeError
from camae.kernels.patches import planes_of_patches
from camae.model.ca_mae import CAMAE
from camae.model.encoder import Encoder
from camae.model.interface import Model
from camae.model.pooling import pool_tokens
from camae.model.token_layout import TokenLayout

# Where the mean and one standard deviation of an imputed plane lie, in shares of the range of values: pixels from -4
# to +12 standard deviations are told apart. The encoder standardizes planes, so neither number is seen in a vector.
_MEAN, _DEVIATION = 1 / 4, 1 / 16
_LEAST_VARIANCE = 1e-12


class ImputedChannels(Model):
    """Encoder of completed channel sets, for `embed` and `embed_screen`: a CA-MAE and the channels that it imputes.

    channels: imputed where an image lacks them, by a first pass over the image and the decoders; a second pass encodes
        the completed image. Images that have them all are encoded as by the model itself.
    order: channels in the order of their vectors with "per_channel"; those that it does not name come last.

    Raises CamaeError for another model than a CA-MAE, decoders that see their own channel alone, and channels without a
    decoder.
    """

    def __init__(self, model: Model, channels: Sequence[str], order: Sequence[str] = ()):
        names = ", ".join(channels)
        if not isinstance(model, CAMAE):
            raise CamaeError(
                f"a channel is imputed by the decoders of a CA-MAE, not by a {type(model).__name__}"
            )
        if model.config.decoder.cross_attention == "none":
            raise CamaeError(
                f"the decoders of {model.config.name} see their own channel alone and cannot impute {names}; train "
                "with decoder.cross_attention 'shared' or 'per_channel'"
            )
        model.check_channels(channels)
        super().__init__(replace(model.config, name=f"{model.config.name} ({names} imputed)"), model.backends)
        self.model, self.imputed, self.order = model, tuple(channels), tuple(order)
        self.origin = model.origin

    @property
    def encoder(self) -> Encoder:  # type: ignore[override]
        """Encoder of the CA-MAE."""
        return self.model.encoder

    def check_channels(self, names: Sequence[str]) -> None:
        """Raise CamaeError for a channel without a decoder."""
        self.model.check_channels(names)

    def op_sizes(self, decoder: bool = True) -> dict[str, tuple[int, ...]]:
        """As `CAMAE.op_sizes`; decoders run here."""
        return self.model.op_sizes(decoder=True)

    def encoded_channels(self, names: Sequence[str]) -> list[str]:
        """Channels of the completed image, in the order of their vectors."""
        place = {name: i for i, name in enumerate(self.order)}
        added = [name for name in self.imputed if name not in names]
        return sorted([*names, *added], key=lambda name: place.get(name, len(place)))

    def embed_batch(self, batch: PlaneBatch, pool: str, *, interpolate: bool = False) -> list[torch.Tensor]:
        """As `CAMAE.embed_batch`, of the completed images."""
        return pool_tokens(*self.encode(batch, interpolate=interpolate), pool)

    def encode(
        self, batch: PlaneBatch, layout: TokenLayout | None = None, *, interpolate: bool = False
    ) -> tuple[torch.Tensor, TokenLayout]:
        """As `CAMAE.encode`, of the completed images. Raises CamaeError for a layout and for interpolation."""
        self._check_whole(layout, interpolate)
        return self.model.encode(self.completed(batch))

    def encode_layers(
        self,
        batch: PlaneBatch,
        layers: tuple[int, ...],
        layout: TokenLayout | None = None,
        *,
        interpolate: bool = False,
    ) -> tuple[list[torch.Tensor], TokenLayout]:
        """As `CAMAE.encode_layers`, of the completed images. Raises CamaeError as `encode`."""
        self._check_whole(layout, interpolate)
        return self.model.encode_layers(self.completed(batch), layers)

    def _check_whole(self, layout: TokenLayout | None, interpolate: bool) -> None:
        if layout is not None or interpolate:
            raise CamaeError(
                f"imputing {', '.join(self.imputed)} takes whole crops; leave out region= and tiles='interpolate'"
            )

    def completed(self, batch: PlaneBatch) -> PlaneBatch:
        """The batch with the planes that its images lack, in the dtype of the others."""
        counts, names = batch.planes_per_sample, iter(batch.names_K)
        planes = batch.planes_KHW.split(counts)
        images = [
            self._ordered(planes_CHW, [next(names) for _ in range(count)])
            for planes_CHW, count in zip(planes, counts, strict=True)
        ]
        if lacking := [image for image in images if any(image.hidden)]:
            filled = iter(self._imputed(lacking, batch.value_range))
            images = [next(filled) if any(image.hidden) else image for image in images]
        return _batch(images, batch.value_range)

    def _ordered(self, planes_CHW: torch.Tensor, names: list[str]) -> _Image:
        """An image with its planes in the order of the vectors, and zeros for those that it lacks."""
        wanted, blank_HW = self.encoded_channels(names), torch.zeros_like(planes_CHW[0])
        planes = [planes_CHW[names.index(name)] if name in names else blank_HW for name in wanted]
        return _Image(planes, wanted, [name not in names for name in wanted])

    @torch.no_grad()
    def _imputed(self, images: Sequence[_Image], value_range: ValueRange | None) -> list[_Image]:
        """The images with predicted planes in place of the blank ones."""
        batch = _batch(images, value_range)
        N, (H, W) = self.n_patches(batch), batch.planes_KHW.shape[1:]
        hidden_K = torch.tensor([is_hidden for image in images for is_hidden in image.hidden])
        shown = tuple(N * (len(image.hidden) - sum(image.hidden)) for image in images)
        keep = ((~hidden_K).nonzero() * N + torch.arange(N)).flatten()
        device = batch.planes_KHW.device
        layout = TokenLayout(batch.planes_per_sample, N, shown, keep.to(device, non_blocking=True), device)
        tokens_TD, _ = self.model.encode(batch, layout)
        predicted_MP2 = self.model.decoder(tokens_TD, layout, batch.names_K, layout.decoded)
        planes = iter(_stored(planes_of_patches(predicted_MP2.float(), H, W), batch))
        return [
            replace(
                image,
                planes=[next(planes) if h else p for p, h in zip(image.planes, image.hidden, strict=True)],
            )
            for image in images
        ]


@dataclass(frozen=True)
class _Image:
    """Image in the order of its vectors. planes: (H, W) each. hidden: of each plane, whether it is predicted."""

    planes: list[torch.Tensor]
    names: list[str]
    hidden: list[bool]


def _batch(images: Sequence[_Image], value_range: ValueRange | None) -> PlaneBatch:
    return PlaneBatch.from_images(
        [torch.stack(image.planes) for image in images],
        [image.names for image in images],
        value_range=value_range,
    )


def _stored(planes_KHW: torch.Tensor, batch: PlaneBatch) -> torch.Tensor:
    """Planes as values of the batch's dtype, each brought to `_MEAN` and `_DEVIATION` of it."""
    dtype = batch.planes_KHW.dtype
    # An integer type is used whole: a narrow value range would leave too few gray levels.
    float_range = batch.value_range if dtype.is_floating_point else None
    low, high = float_range or (0, torch.iinfo(dtype).max)
    variance_K11, mean_K11 = torch.var_mean(planes_KHW, (1, 2), correction=0, keepdim=True)
    standardized_KHW = (planes_KHW - mean_K11) * (variance_K11 + _LEAST_VARIANCE).rsqrt()
    stored = (low + (high - low) * (_MEAN + _DEVIATION * standardized_KHW)).clamp(low, high)
    return stored.to(dtype) if dtype.is_floating_point else stored.round().to(dtype)
