"""Feature distillation: the encoder's tokens of each plane predict what a frozen teacher says of that plane.

The student sees the masked crop, the teacher the whole one, so that embedding by the small model comes close to the
large one's. Targets are the teacher's features of a plane, normalized as in data2vec (Baevski et al. 2022).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from camae.dataloader.mixture import Source
from camae.dataloader.plane_batch import PlaneBatch
from camae.errors import CamaeError
from camae.model.interface import Model, TokenModel, TransformerConfig
from camae.model.token_layout import TokenLayout
from camae.model.weights import load
from camae.training.data import channels_of


class Distillation(nn.Module):
    """Distillation term: a linear head from the student's features of a plane to the teacher's.

    path: of the teacher, as in `camae.load`. Raises CamaeError for a teacher without tokens of channels, or one that
    does not know all channels of the data.
    """

    def __init__(self, path: str, width: int, training: Sequence[Source], device: torch.device):
        super().__init__()
        teacher = load(path, device=device).eval().requires_grad_(False)
        check_teacher(path, teacher, channels_of(training))
        # Held in a tuple, so that it is no part of the run's weights.
        self._teacher = (teacher,)
        assert isinstance(teacher.config, TransformerConfig)
        self.head = nn.Linear(width, teacher.config.width)

    @torch.no_grad()
    def targets(self, batch: PlaneBatch) -> torch.Tensor:
        """(K, E) float32 features of the planes of whole crops, each of mean 0 and variance 1."""
        teacher = self._teacher[0]
        size = batch.planes_KHW.shape[-1]
        found = teacher.embed_batch(batch, "per_channel", interpolate=size != teacher.config.crop)
        y_KE = torch.cat(found).float()
        return F.layer_norm(y_KE, y_KE.shape[-1:])

    def forward(
        self, tokens_TD: torch.Tensor, layout: TokenLayout, target_KE: torch.Tensor, n_samples: int
    ) -> torch.Tensor:
        """Mean squared error of a pass, its part of the mean over the n_samples crops of a step.

        A plane's prediction is made from the mean of its visible tokens; planes without any are left out of the mean of
        their crop. tokens_TD: encoder tokens (T, D).
        """
        x_VD = tokens_TD[layout.patch_rows].float()
        plane_V = layout.kept // layout.n_patches
        sums_KD = x_VD.new_zeros(layout.n_planes, x_VD.shape[1]).index_add(0, plane_V, x_VD)
        count_K = x_VD.new_zeros(layout.n_planes).index_add(0, plane_V, torch.ones_like(x_VD[:, 0]))
        mean_KD = sums_KD / count_K.clamp(min=1)[:, None]
        seen_K = (count_K > 0).float()
        predicted_KE = self.head(mean_KD.to(self.head.weight.dtype)).float()
        error_K = (predicted_KE - target_KE).square().mean(-1) * seen_K
        planes = torch.tensor(layout.planes_per_sample).to(layout.device, non_blocking=True)
        sample_K = torch.arange(layout.n_samples, device=layout.device).repeat_interleave(
            planes, output_size=layout.n_planes
        )
        sums_2B = error_K.new_zeros(2, layout.n_samples).index_add(
            1, sample_K, torch.stack([error_K, seen_K])
        )
        return (sums_2B[0] / sums_2B[1].clamp(min=1)).sum() / n_samples


def check_teacher(path: str, teacher: Model, channels: Sequence[str]) -> None:
    """Raise CamaeError for a teacher that has no features of single channels, or does not know one of `channels`."""
    if not isinstance(teacher, TokenModel) or not isinstance(teacher.config, TransformerConfig):
        raise CamaeError(
            f"teacher {path} is {teacher.config.name}, which has no tokens of channels; give a CA-MAE"
        )
    if unknown := [name for name in channels if name not in teacher.channels]:
        raise CamaeError(
            f"teacher {path} knows the channels {', '.join(teacher.channels)}, and the data also have "
            f"{', '.join(unknown)}; rename the columns of the manifest, or leave these channels out"
        )
