"""Cross-well alignment: replicates of one perturbation, in two wells, agree in what a head says of their tokens.

After CWA-MSN (Huang et al. 2025, arXiv:2509.19896) and masked siamese networks (Assran et al. 2022, arXiv:2204.07141).
Both crops of a pair are masked, each is the other's target without gradient, and the encoder's pass is that of the
reconstruction loss, so that the term costs a small head; the published method encodes an unmasked target by an average
of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from camae.dataloader.mixture import Source
from camae.dataloader.plane_batch import PlaneBatch
from camae.dataloader.replicates import PAIR, Replicates
from camae.errors import CamaeError
from camae.model.pooling import pool_tokens
from camae.model.token_layout import TokenLayout
from camae.training.config import TrainConfig

# Masked siamese networks: temperature of the predictions, and the exponent that sharpens targets.
TEMPERATURE, SHARPENING = 0.1, 0.25
_FEATURES = 64


class CrossWell(nn.Module):
    """Cross-well term: head, prototypes, and which crops of a batch are pairs.

    Crops 2p and 2p + 1 of a batch are a pair where `Replicates` says so; others have no share in the term.
    """

    def __init__(self, config: TrainConfig, width: int, training: Sequence[Source]):
        super().__init__()
        self.group = config.cross_well_group
        self._replicates = [Replicates(source.manifest, config.cross_well_label) for source in training]
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, _FEATURES))
        self.prototypes_KP = nn.Parameter(torch.randn(config.cross_well_prototypes, _FEATURES))

    def paired(self, batch: PlaneBatch) -> torch.Tensor:
        """(B,) float32 on the host, 1 for crops that are a pair of replicates with their neighbor, else 0."""
        source_P = (
            batch.source_B[::PAIR] if len(batch.source_B) else np.zeros(batch.n_samples // PAIR, np.int64)
        )
        first_P, second_P = batch.rows_B[::PAIR], batch.rows_B[1::PAIR]
        paired_P = np.zeros(len(source_P), np.float32)
        for i, replicates in enumerate(self._replicates):
            here = source_P == i
            paired_P[here] = replicates.are_replicates(first_P[here], second_P[here])
        return torch.from_numpy(paired_P.repeat(PAIR))

    def forward(
        self, tokens_TD: torch.Tensor, layout: TokenLayout, paired_B: torch.Tensor, n_samples: int
    ) -> torch.Tensor:
        """Term of a pass, its part of the mean over the n_samples crops of a step. tokens_TD: encoder tokens (T, D)."""
        x_BD = torch.stack(pool_tokens(tokens_TD, layout, "mean"))
        q_BP = F.normalize(self.head(x_BD.to(self.prototypes_KP.dtype)).float(), dim=-1)
        logits_BK = q_BP @ F.normalize(self.prototypes_KP.float(), dim=-1).T / TEMPERATURE
        return siamese_loss(logits_BK, paired_B, self.group) / n_samples


def siamese_loss(logits_BK: torch.Tensor, paired_B: torch.Tensor, group: int) -> torch.Tensor:
    """Masked siamese loss summed over paired crops: cross entropy with the sharpened prediction of the other crop, and
    what the entropy of the mean prediction lacks of log K (Assran et al., Eq. 1 and a constant that keeps it from being
    negative), so that prototypes are not left unused.

    logits_BK: (B, K), crops 2p and 2p + 1 are a pair. paired_B: (B,) 1 or 0. group: consecutive crops over which
    predictions are averaged, so that no sum runs over what other passes or ranks hold; it divides B.
    """
    weight_BL = paired_B.to(logits_BK)[:, None]
    log_BK = logits_BK.log_softmax(-1)
    target_BK = (logits_BK.detach() / SHARPENING).softmax(-1)
    other_BK = target_BK.unflatten(0, (-1, PAIR)).flip(1).flatten(0, 1)
    cross_entropy = -(weight_BL * other_BK * log_BK).sum()
    sums_GK = (weight_BL * log_BK.exp()).unflatten(0, (-1, group)).sum(1)
    count_GL = weight_BL.unflatten(0, (-1, group)).sum(1)
    # Above 0, where the gradient of x log x is finite: a group may have no pair.
    mean_GK = (sums_GK / count_GL.clamp(min=1)).clamp(min=torch.finfo(sums_GK.dtype).tiny)
    entropy_GL = torch.special.entr(mean_GK).sum(-1, keepdim=True)
    most = math.log(logits_BK.shape[1])
    return cross_entropy + (count_GL * (most - entropy_GL)).sum()


def check_group(config: TrainConfig, ranks: int) -> None:
    """Raise CamaeError where the crops of a rank's pass are not whole groups of `cross_well_group`."""
    crops, parts = config.batch_size, config.passes(ranks) * ranks
    if crops % (parts * config.cross_well_group):
        raise CamaeError(
            f"cross_well_group {config.cross_well_group} does not divide a pass, {crops} crops in {parts} parts; "
            f"choose a batch_size that is a multiple of {parts * config.cross_well_group}, or a smaller group"
        )
