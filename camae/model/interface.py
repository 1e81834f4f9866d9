"""Interfaces of models: the base class `Model` of all families, and protocols of what only some of them can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NotRequired, Protocol, Self, TypedDict, Unpack, runtime_checkable

import numpy as np
import torch
from torch import nn

from camae.dataloader.loader import CropLoader
from camae.dataloader.manifest import Manifest
from camae.dataloader.plane_batch import PlaneBatch, ValueRange
from camae.errors import CamaeError
from camae.model.backends import BackendModule, Backends
from camae.model.fork import compute_on_one_thread_after_fork
from camae.model.hub import Origin, pinned
from camae.model.standardization import standardization_eps
from camae.model.token_layout import TokenLayout

compute_on_one_thread_after_fork()

Image = np.ndarray | torch.Tensor
Images = Image | Sequence[Image]  # (C, H, W), (B, C, H, W), or a sequence of (C_i, H, W)
_SHOWN_CHANNELS = 12  # in a model's repr
ChannelNames = Sequence[str] | Sequence[Sequence[str]]  # of all images, or of each


class Config(Protocol):
    """Configuration of a model of any family: a frozen dataclass that is stored with the weights as JSON."""

    @property
    def family(self) -> str:
        """Name of the model family."""

    @property
    def name(self) -> str:
        """Name of the preset, or "custom"."""

    @property
    def crop(self) -> int:
        """Side of an input image in pixels."""

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""

    @property
    def n_patches(self) -> int:
        """N, patches per plane of a crop."""

    @property
    def mask_ratio(self) -> float:
        """Share of the patches that training masks."""

    @property
    def alpha(self) -> float:
        """Weight of the Fourier loss (paper, Eq. 3)."""

    @property
    def standardization(self) -> str:
        """Self-standardization of planes: "own" or "openphenom"."""

    @property
    def channels(self) -> tuple[str, ...]:
        """Channel names, in order."""

    def to_dict(self) -> dict[str, object]:
        """Fields as JSON values."""

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Self:
        """Inverse of `to_dict`, without the family. Raises CamaeError for unknown names."""


@runtime_checkable
class TransformerConfig(Protocol):
    """Configuration of a transformer encoder."""

    @property
    def width(self) -> int:
        """D, features of a token."""

    @property
    def depth(self) -> int:
        """Blocks of the encoder."""


@runtime_checkable
class LabelConfig(Protocol):
    """Configuration of a model that is trained on labels."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""


@runtime_checkable
class CountsBlocks(Protocol):
    """Configuration that says how many blocks its model has, each of at least one tensor."""

    @property
    def n_blocks(self) -> int:
        """Blocks of the whole model, or 0 where the configuration does not set them."""


class LossOptions(TypedDict):
    """Keyword arguments of `Model.forward`; None is the configuration's value.

    mask_ratio, alpha: as in `Config`. n_samples: what sums over samples are divided by (the count over accumulated
    batches and ranks); None is this batch's.
    """

    mask_ratio: NotRequired[float | None]
    alpha: NotRequired[float | None]
    n_samples: NotRequired[int | None]


class Model(BackendModule, ABC):
    """Model of any family, as training and embedding use it.

    config: what it was made from. encoder: the part that embedding uses. A model is made by
    `camae.model.registry.build` and read from a file by `camae.model.load`. origin: of weights from the hub,
    repository, revision, commit, file and sha256, else empty. file: the model file it was read from, or None.
    """

    config: Config
    encoder: nn.Module

    def __init__(self, config: Config, backends: Backends | None = None):
        super().__init__(backends)
        self.config = config
        self.origin: Origin = {}
        self.file: Path | None = None

    def __repr__(self) -> str:
        """One line; `print(model.encoder)` shows the layers."""
        c = self.config
        size = f" {c.width} x {c.depth}," if isinstance(c, TransformerConfig) else ""
        parameters = list(self.parameters())
        count = sum(p.numel() for p in parameters)
        device = parameters[0].device if parameters else "cpu"
        channels = ", ".join(c.channels[:_SHOWN_CHANNELS]) + (
            ", ..." if len(c.channels) > _SHOWN_CHANNELS else ""
        )
        mode = "training" if self.training else "eval"
        source = f", from {pinned(self.origin)}" if self.origin else ""
        return (
            f"{type(self).__name__}({c.name}:{size} patch {c.patch}, crop {c.crop} px, channels [{channels}], "
            f"{count / 1e6:,.1f} M parameters, {device}, {mode}{source})"
        )

    @property
    def channels(self) -> list[str]:
        """Channel names of the configuration, in order."""
        return list(self.config.channels)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def eps(self, batch: PlaneBatch) -> float:
        """Standardization eps for the stored values of `batch`.

        Raises CamaeError where the dtype needs a value range and the batch has none.
        """
        return standardization_eps(self.config.standardization, batch.planes_KHW.dtype, batch.value_range)

    def n_patches(self, batch: PlaneBatch) -> int:
        """N, patches per plane of this batch."""
        H, W = batch.planes_KHW.shape[1:]
        return (H // self.config.patch) * (W // self.config.patch)

    def op_sizes(self, decoder: bool = True) -> dict[str, tuple[int, ...]]:
        """Sizes of the model's ops that their default back-ends depend on (`Backends.names`).

        decoder: count what only training runs.
        """
        return {"tokenize": (self.config.patch,), "loss": (self.config.patch,)}

    def encoded_channels(self, names: Sequence[str]) -> list[str]:
        """Channels that the vectors of an image are of, in order, from the names of its own."""
        return list(names)

    @abstractmethod
    def check_channels(self, names: Sequence[str]) -> None:
        """Raise CamaeError where the model cannot be trained on images of these channels."""

    @abstractmethod
    def embed_batch(self, batch: PlaneBatch, pool: str, *, interpolate: bool = False) -> list[torch.Tensor]:
        """One float32 vector per sample, (D,), or (C, D) for pool "per_channel".

        interpolate: interpolate positions where planes are not of the model's crop.
        Raises CamaeError for a pooling that the family does not have.
        """

    def forward(
        self, batch: PlaneBatch, noise: torch.Tensor, **options: Unpack[LossOptions]
    ) -> dict[str, torch.Tensor]:
        """Training loss: scalars "total", which is minimized, and others, detached, which are logged.

        noise: (K * n_patches(batch),) uniform in [0, 1). Raises CamaeError for a family that is not trained.
        """
        raise CamaeError(f"{self.config.name} has no training loss")


@runtime_checkable
class TokenModel(Protocol):
    """Model with a token for every patch of every plane: takes regions and layers."""

    def encode(
        self,
        batch: PlaneBatch,
        layout: TokenLayout | None = None,
        *,
        interpolate: bool = False,
    ) -> tuple[torch.Tensor, TokenLayout]:
        """Tokens (T, D) of the encoder, and their layout."""

    def encode_layers(
        self,
        batch: PlaneBatch,
        layers: tuple[int, ...],
        layout: TokenLayout | None = None,
        *,
        interpolate: bool = False,
    ) -> tuple[list[torch.Tensor], TokenLayout]:
        """Tokens (T, D) of the named blocks in ascending order, and their layout."""


@runtime_checkable
class Reconstructs(Protocol):
    """Model that predicts masked patches."""

    def reconstruct(
        self,
        images: Image,
        channels: ChannelNames,
        noise: Images | None = None,
        mask_ratio: float = 0.75,
        *,
        value_range: ValueRange | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Patches (B, C*N, P*P) of images (B, C, H, W) in self-standardized units; mask (B, C*N), 1 = masked."""


@runtime_checkable
class PlateAdaptive(Protocol):
    """Model whose normalization statistics may be estimated again on each plate before embedding."""

    @property
    def adapts_to_plates(self) -> bool:
        """Whether embedding a screen adapts it to each plate."""

    def adapted_to(self, manifest: Manifest, *, value_range: ValueRange | None, reader: str | None) -> Self:
        """A copy with the statistics of the sites in `manifest`, all of one plate."""


@runtime_checkable
class DefinesCropLoader(Protocol):
    """Model that defines its own crop loader."""

    @property
    def crop_loader(self) -> type[CropLoader]:
        """Loader class of its training batches."""
