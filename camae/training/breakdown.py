"""Losses by channel and by data set, from the losses of planes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from camae.dataloader.plane_batch import PlaneBatch


class Breakdown:
    """Adds up the planes of a step. Channel: mean over its masked patches. Data set: mean over samples of each
    sample's mean over its masked patches, as in the loss itself.
    """

    def __init__(self, channels: Sequence[str], sources: Sequence[str]):
        self.channels, self.sources = tuple(channels), tuple(sources)
        self._index = {name: i for i, name in enumerate(self.channels)}
        self._sums_2N = np.zeros((2, len(self.channels) + len(self.sources)))

    def add(self, batch: PlaneBatch, plane_2K: torch.Tensor) -> None:
        """plane_2K: per plane, the sum of the loss over its masked patches, and how many those are."""
        sums_2K = plane_2K.double().cpu().numpy()
        channel_K = np.array([self._index[name] for name in batch.names_K])
        np.add.at(self._sums_2N[0], channel_K, sums_2K[0])
        np.add.at(self._sums_2N[1], channel_K, sums_2K[1])
        first_B = np.cumsum((0, *batch.planes_per_sample[:-1]))
        sample_2B = np.add.reduceat(sums_2K, first_B, axis=1)
        source_B = batch.source_B if len(batch.source_B) else np.zeros(len(first_B), np.int64)
        mean_B = sample_2B[0] / np.maximum(sample_2B[1], 1)
        np.add.at(self._sums_2N[0], len(self.channels) + source_B, mean_B)
        np.add.at(self._sums_2N[1], len(self.channels) + source_B, 1)

    def sums(self) -> torch.Tensor:
        """(2, n) fp64 on the host: to be added over ranks before `row`."""
        return torch.from_numpy(self._sums_2N)

    def row(self) -> dict[str, float]:
        """`channel/<name>` and, for several data sets, `data/<name>`; those that did not occur are left out."""
        total_N, count_N = self._sums_2N
        names = [f"channel/{c}" for c in self.channels] + [f"data/{s}" for s in self.sources]
        shown = len(names) if len(self.sources) > 1 else len(self.channels)
        return {names[i]: float(total_N[i] / count_N[i]) for i in range(shown) if count_N[i]}
