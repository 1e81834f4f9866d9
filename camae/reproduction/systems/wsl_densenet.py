"""The weakly supervised DenseNet-161 (paper, section 4.1; Sypetkowski et al.), with and without adaptive batch norm.

timm's DenseNet-161 on C channels, a neck of two layers that gives the embedding (128-d or 1,024-d), and the
perturbation logits from it. With `ghost` > 0 every batch norm takes its statistics from ghost batches of one plate
and is re-estimated on each plate before embedding (see `adabn`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import nn

from camae.dataloader.manifest import Manifest
from camae.dataloader.plane_batch import PlaneBatch, ValueRange
from camae.model.config import find_preset
from camae.model.pooling import moments
from camae.model.registry import ModelFamily, register
from camae.reproduction.systems._torchvision import import_timm
from camae.reproduction.systems.adabn import adapted, use_ghost_batches
from camae.reproduction.systems.fixed_channels import SystemConfig
from camae.reproduction.systems.weakly_supervised import Classifier, PlateCropLoader
from camae.typed_settings import limited

NECK_HIDDEN = 512  # with it backbone and neck for six channels are 27.7 M, nearest to the paper's 28 M


@dataclass(frozen=True)
class DenseNetConfig(SystemConfig):
    """Configuration of a DenseNet classifier.

    growth, blocks: DenseNet's growth rate (twice it are the first features) and the layers of its blocks.
    hidden, embedding: widths of the neck's hidden layer and of its output.
    ghost: crops in a ghost batch; 0 is plain batch norm.
    """

    family: ClassVar[str] = "wsl_densenet"
    classes: tuple[str, ...] = limited((), most=10**6)
    growth: int = limited(48, low=1, high=1024)
    blocks: tuple[int, ...] = limited((6, 12, 36, 24), low=1, high=256, most=16)
    hidden: int = limited(NECK_HIDDEN, low=1, high=2**16)
    embedding: int = limited(128, low=1, high=2**16)
    ghost: int = limited(0, low=0, high=10**6)

    @property
    def n_blocks(self) -> int:
        """Layers of all dense blocks."""
        return sum(self.blocks)


def _presets() -> dict[str, DenseNetConfig]:
    table = {}
    for suffix, embedding in (("", 128), ("_1024", 1024)):
        for norm, ghost in (("", 0), ("_adabn", 32)):
            name = f"wsl_densenet161{norm}{suffix}"
            table[name] = DenseNetConfig(embedding=embedding, ghost=ghost, name=name)
    for norm, ghost in (("", 0), ("_adabn", 4)):
        name = f"wsl_densenet_ti{norm}"
        table[name] = DenseNetConfig(
            growth=12, blocks=(2, 2, 2, 2), hidden=64, embedding=64, ghost=ghost, name=name
        )
    return table


PRESETS = _presets()


def preset(name: str, **changes: object) -> DenseNetConfig:
    """Preset `wsl_densenet161[_adabn][_1024]`, or `wsl_densenet_ti[_adabn]` for laptops, with fields changed."""
    return find_preset(PRESETS, name, changes)


class DenseNetClassifier(Classifier):
    """DenseNet classifier with a neck. Embedding: the neck's output, or moments of the last feature map."""

    config: DenseNetConfig
    pools = ("mean", "moments")
    pool_reason = "mixes all channels in every feature"

    def __init__(self, config: DenseNetConfig):
        super().__init__(config)
        self.adapted = False  # a copy with one plate's statistics says True
        timm = import_timm()
        self.encoder = timm.create_model(
            "densenet161",
            pretrained=False,
            in_chans=len(config.channels),
            num_classes=0,
            growth_rate=config.growth,
            block_config=tuple(config.blocks),
        )
        if config.ghost:
            use_ghost_batches(self.encoder, config.ghost)
        self.neck = nn.Sequential(
            nn.Linear(cast(int, self.encoder.num_features), config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, config.embedding),
        )
        self.head = nn.Linear(config.embedding, len(config.classes))

    @property
    def adapts_to_plates(self) -> bool:
        """Whether batch-norm statistics are re-estimated on each plate before embedding."""
        return self.config.ghost > 0 and not self.adapted

    def adapted_to(
        self, manifest: Manifest, *, value_range: ValueRange | None, reader: str | None
    ) -> DenseNetClassifier:
        """A copy with batch-norm statistics of the sites in `manifest` (one plate)."""
        return adapted(self, manifest, value_range=value_range, reader=reader)

    @property
    def crop_loader(self) -> type[PlateCropLoader]:
        """Loader of ghost batches of one plate each; without them, of single crops of plates in turn."""

        class GhostCropLoader(PlateCropLoader):
            """Crop loader of whole ghost batches."""

            group = max(1, self.config.ghost)

        return GhostCropLoader

    def features(self, batch: PlaneBatch, eps: float) -> torch.Tensor:
        """Output of the neck, (B, embedding)."""
        return self.neck(self.encoder(self.images(batch, eps)))

    def logits(self, batch: PlaneBatch, eps: float) -> torch.Tensor:
        """Logits (B, classes)."""
        return self.head(F.relu(self.features(batch, eps)))

    def pooled_features(self, batch: PlaneBatch, pool: str, interpolate: bool) -> torch.Tensor:
        """Embeddings (B, embedding): the output of the neck; "moments": (B, 2F) over the last feature map's places."""
        if pool == "moments":
            maps_of = cast(Callable[[torch.Tensor], torch.Tensor], self.encoder.forward_features)
            return moments(maps_of(self.images(batch, self.eps(batch))).float().flatten(2).mT)
        return self.features(batch, self.eps(batch))


register(ModelFamily("wsl_densenet", DenseNetClassifier, DenseNetConfig, preset))
