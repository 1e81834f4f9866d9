"""Training metrics: FLOP/s, MFU and memory of the device, and losses by channel and by data set."""

from __future__ import annotations

import resource
from collections.abc import Sequence

import numpy as np
import torch

from camae.dataloader.plane_batch import PlaneBatch
from camae.model.ca_mae import CAMAE
from camae.model.flops import mfu, model_flops, peak_flops
from camae.model.interface import Model


class Meter:
    """Throughput meter: model FLOPs of the passes between two rows of the log, MFU where the device's peak is known.

    processes: ranks of the run, which are taken to do as much as this one.
    """

    def __init__(self, model: Model, device: torch.device, precision: str, processes: int = 1):
        self.config = model.config if isinstance(model, CAMAE) else None
        self.device, self.processes = device, processes
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self.peak = peak_flops(name, precision)
        self._flops = 0.0

    def count(self, planes_per_sample: tuple[int, ...], mask_ratio: float) -> None:
        """Add a pass, forward and backward, of samples with those numbers of channels."""
        if self.config is not None:
            self._flops += model_flops(self.config, planes_per_sample, mask_ratio).training

    def row(self, seconds: float) -> dict[str, float]:
        """`tflops` (10^12 model FLOP/s over all processes), `mfu`, `memory_gb` since the last row; resets the count.

        memory_gb: most memory allocated on the GPU, or the most that this process ever held on the host.
        """
        found: dict[str, float] = {}
        flops, self._flops = self._flops * self.processes, 0.0
        if flops:
            found["tflops"] = flops / seconds / 1e12
        share = mfu(flops, seconds, self.peak, self.processes)
        if share:
            found["mfu"] = share
        if self.device.type == "cuda":
            found["memory_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            found["memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        return found


class LossBreakdown:
    """Mean losses by channel and by data set over the planes of a step.

    Channel: mean over its masked patches. Data set: mean over samples of each sample's mean over its masked patches,
    as in the loss itself.
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
        """(2, n) fp64 on the host: to be summed over ranks, in place, before `row`."""
        return torch.from_numpy(self._sums_2N)

    def row(self) -> dict[str, float]:
        """`channel/<name>` and, for several data sets, `data/<name>`; those that did not occur are left out."""
        total_N, count_N = self._sums_2N
        names = [f"channel/{c}" for c in self.channels] + [f"data/{s}" for s in self.sources]
        shown = len(names) if len(self.sources) > 1 else len(self.channels)
        return {names[i]: float(total_N[i] / count_N[i]) for i in range(shown) if count_N[i]}
