"""Weakly supervised learning (paper, section 4.1): classifiers of perturbations, and their crop loader."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from camae.dataloader.loader import CropLoader
from camae.dataloader.manifest import Manifest
from camae.dataloader.plane_batch import PlaneBatch
from camae.dataloader.sampling import Draws
from camae.errors import CamaeError
from camae.reproduction.systems.fixed_channels import FixedChannelConfig, FixedChannelModel


class ClassifierConfig(FixedChannelConfig, Protocol):
    """Configuration of a classifier."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the perturbations, in the order of the logits."""


class Classifier(FixedChannelModel):
    """Classifier of the perturbations of the training manifest, trained with cross-entropy."""

    config: ClassifierConfig

    def __init__(self, config: ClassifierConfig):
        super().__init__(config)
        if len(config.classes) < 2:
            raise CamaeError(
                f"{config.name} learns to tell perturbations apart; it was given {len(config.classes)} of them"
            )

    @abstractmethod
    def logits(self, batch: PlaneBatch, eps: float) -> torch.Tensor:
        """Logits (B, classes)."""

    def forward(
        self,
        batch: PlaneBatch,
        noise: torch.Tensor,
        *,
        label_B: torch.Tensor | None = None,
        mask_ratio: float | None = None,
        alpha: float | None = None,
        n_samples: int | None = None,
    ) -> dict[str, torch.Tensor]:
        """Cross-entropy ("total") and accuracy. Nothing is masked.

        label_B: (B,) int64 classes; samples with -1 do not count. Raises CamaeError without labels.
        """
        if label_B is None:
            raise CamaeError(f"{self.config.name} is trained on labels, and the batch has none")
        logits_BK = self.logits(batch, self.eps(batch)).float()
        total = F.cross_entropy(logits_BK, label_B, ignore_index=-1, reduction="sum")
        hits = (logits_BK.argmax(1) == label_B).sum()
        count = n_samples or batch.n_samples
        return {"total": total / count, "accuracy": (hits / count).detach()}


class PlateCropLoader(CropLoader):
    """Plate-wise crop loader: each `group` consecutive crops come from one plate, all plates equally often.

    Where a batch holds whole groups, a group is a ghost batch of one plate, as adaptive batch norm needs. Which
    site comes when stays a pure function of (manifest, seed, slot).
    """

    group = 1

    def __init__(self, manifest: Manifest, **options: Any) -> None:
        super().__init__(manifest, **options)
        if self.batch_size % self.group:
            raise CamaeError(
                f"a batch of {self.batch_size} crops does not hold whole ghost batches of {self.group}: "
                "change batch_size, accumulate or model_options.ghost"
            )
        plates = manifest.plates()
        self._rows = [np.flatnonzero(plates == plate) for plate in np.unique(plates)]

    def _draws(self, slots_B: npt.NDArray[np.int64], attempt: int) -> Draws:
        draws = super()._draws(slots_B, attempt)
        turn_B, member_B = np.divmod(slots_B, self.group)
        epoch_B, place_B = np.divmod(turn_B, len(self._rows))
        rows_B = [
            self._row(int(e), int(p), int(m)) for e, p, m in zip(epoch_B, place_B, member_B, strict=True)
        ]
        return Draws(np.array(rows_B, np.int64), draws.uniform_B2, draws.symmetry_B)

    def _row(self, epoch: int, place: int, member: int) -> int:
        """Plates come in a new order every epoch; a plate shows all its sites before it repeats one."""
        plate = int(_permutation((self.seed, 0, epoch), len(self._rows))[place])
        rows = self._rows[plate]
        lap, position = divmod(epoch * self.group + member, len(rows))
        return int(rows[_permutation((self.seed, 1 + plate, lap), len(rows))[position]])


def _permutation(key: tuple[int, ...], count: int) -> npt.NDArray[np.int64]:
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little")).permutation(count)
