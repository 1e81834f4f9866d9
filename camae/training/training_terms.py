"""Training terms: what training adds to the reconstruction loss, with heads that only training needs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from camae.dataloader.mixture import Source
from camae.dataloader.plane_batch import PlaneBatch
from camae.errors import CamaeError
from camae.model.ca_mae import CAMAE
from camae.model.interface import Model
from camae.model.token_layout import TokenLayout
from camae.model.weights import TRAINING_ONLY
from camae.training.config import TrainConfig
from camae.training.cross_well import CrossWell, check_group
from camae.training.distillation import Distillation

Tensors = dict[str, torch.Tensor]


class TrainingTerms(nn.Module):
    """The terms of a run and their weights; a part of the model while it trains, under the name TRAINING_ONLY.

    Raises CamaeError for a model that is no CA-MAE, and as the terms do.
    """

    def __init__(self, config: TrainConfig, model: Model, training: Sequence[Source], ranks: int):
        super().__init__()
        setting = f"cross_well={config.cross_well:g}" if config.cross_well else f"teacher={config.teacher!r}"
        if not isinstance(model, CAMAE):
            raise CamaeError(f"{setting} needs a CA-MAE, and {model.config.name} is none; leave it out")
        self.weights = {"cross_well": config.cross_well, "distillation": config.teacher_weight}
        self.n_samples = config.batch_size
        self.cross_well: CrossWell | None = None
        self.distillation: Distillation | None = None
        width = model.config.width
        if config.cross_well:
            check_group(config, ranks)
            self.cross_well = CrossWell(config, width, training)
        if config.teacher is not None:
            self.distillation = Distillation(config.teacher, width, training, model.device)

    def options(self, batch: PlaneBatch, on_device: PlaneBatch) -> dict[str, partial[Tensors]]:
        """`terms` of the model's forward for a batch. batch: on the host; on_device: the same, where the model is."""
        inputs = {}
        if self.cross_well is not None:
            inputs["paired_B"] = self.cross_well.paired(batch).to(self.device, non_blocking=True)
        if self.distillation is not None:
            inputs["target_KE"] = self.distillation.targets(on_device)
        return {"terms": partial(self, **inputs)}

    @property
    def device(self) -> torch.device:
        """Device of the heads."""
        return next(self.parameters()).device

    def forward(
        self,
        tokens_TD: torch.Tensor,
        layout: TokenLayout,
        paired_B: torch.Tensor | None = None,
        target_KE: torch.Tensor | None = None,
    ) -> Tensors:
        """Weighted terms of a pass by name, scalars with gradient. tokens_TD: encoder tokens (T, D)."""
        found = {}
        if self.cross_well is not None and paired_B is not None:
            found["cross_well"] = self.cross_well(tokens_TD, layout, paired_B, self.n_samples)
        if self.distillation is not None and target_KE is not None:
            found["distillation"] = self.distillation(tokens_TD, layout, target_KE, self.n_samples)
        return {name: self.weights[name] * term for name, term in found.items()}


def attach_terms(
    config: TrainConfig, model: Model, training: Sequence[Source], ranks: int
) -> TrainingTerms | None:
    """The terms of a run, made a part of the model; None where the settings ask for none."""
    if not config.cross_well and config.teacher is None:
        return None
    terms = TrainingTerms(config, model, training, ranks).to(model.device)
    model.add_module(TRAINING_ONLY, terms)
    return terms


def detach_terms(model: Model) -> None:
    """Take the heads of training off a model."""
    if hasattr(model, TRAINING_ONLY):
        delattr(model, TRAINING_ONLY)
