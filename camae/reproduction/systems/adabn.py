"""Adaptive batch normalization (Li et al.; paper, section 4.1) on Ghost BatchNorm (Hoffer et al.).

Training: each ghost batch, a run of crops of one plate, is normalized by its own mean and variance, so that what
differs between plates in every feature alike is never seen. Embedding: the statistics of a plate are estimated
on crops of that plate, and its sites are embedded with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Protocol, Self, TypeVar, cast

import torch
from torch import nn

from camae.dataloader.loader import CropLoader
from camae.dataloader.manifest import Manifest
from camae.dataloader.plane_batch import PlaneBatch, ValueRange
from camae.model.interface import Config


class GhostBatchNorm(nn.Module):
    """Ghost batch normalization: a training batch in runs of `size` samples, each normalized by itself.

    Running statistics move by every run. A last run of one sample goes with the one before it.
    """

    def __init__(self, norm: nn.Module, size: int):
        super().__init__()
        self.norm, self.size = norm, size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalized features, of the shape of x, samples first."""
        if not self.training or self.size == 0 or len(x) <= self.size:
            return self.norm(x)
        parts = list(x.split(self.size))
        if len(parts[-1]) == 1:
            parts[-2:] = [torch.cat(parts[-2:])]
        return torch.cat([self.norm(part) for part in parts])


def use_ghost_batches(module: nn.Module, size: int) -> None:
    """Replace every batch norm within `module` by a `GhostBatchNorm`."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, GhostBatchNorm(child, size))
        else:
            use_ghost_batches(child, size)


class GhostNormModel(Protocol):
    """Model with ghost batch norms. adapted: whether its statistics are those of one plate."""

    adapted: bool

    @property
    def config(self) -> Config: ...
    @property
    def device(self) -> torch.device: ...
    def eps(self, batch: PlaneBatch) -> float: ...
    def features(self, batch: PlaneBatch, eps: float) -> torch.Tensor: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def eval(self) -> Self: ...


M = TypeVar("M", bound=GhostNormModel)


@torch.no_grad()
def adapted(
    model: M,
    manifest: Manifest,
    *,
    value_range: ValueRange | None = None,
    reader: str | None = None,
    crops: int = 128,
    batch_size: int = 32,
) -> M:
    """Adapt a model to a plate: a copy with batch-norm statistics of the sites in `manifest` (one plate), in eval mode.

    At least `crops` random crops are looked at, the same ones every time; the mean of the batches' statistics is
    taken, layer by layer in one pass.
    """
    copy = deepcopy(model).eval()
    for module in copy.modules():
        if isinstance(module, GhostBatchNorm):
            norm = cast(nn.BatchNorm2d, module.norm)
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over batches
            norm.train()
    batch_size = min(batch_size, max(2, len(manifest)))
    loader = CropLoader(
        manifest,
        crop=copy.config.crop,
        batch_size=batch_size,
        seed=0,
        augment=False,
        reader=reader,
        value_range=value_range,
        device=copy.device,
    )
    for step in range(max(1, -(-crops // batch_size))):
        batch = loader.batch_at(step).to(copy.device)
        copy.features(batch, copy.eps(batch))
    copy.adapted = True
    return copy.eval()
