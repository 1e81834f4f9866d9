"""How well a run uses its device: FLOP/s, MFU where the device's peak is known, and the memory peak."""

from __future__ import annotations

import resource

import torch

from camae.model.ca_mae import CAMAE
from camae.model.flops import mfu, model_flops, peak_flops


class Meter:
    """Counts the model's FLOPs of the passes between two rows of the log.

    processes: ranks of the run, which are taken to do as much as this one.
    """

    def __init__(self, model: torch.nn.Module, device: torch.device, precision: str, processes: int = 1):
        self.config = model.config if isinstance(model, CAMAE) else None
        self.device, self.processes = device, processes
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self.peak = peak_flops(name, precision)
        self._flops = 0.0

    def count(self, planes_per_sample: tuple[int, ...], mask_ratio: float) -> None:
        """A pass, forward and backward, of samples with those numbers of channels."""
        if self.config is not None:
            self._flops += model_flops(self.config, planes_per_sample, mask_ratio).training

    def row(self, seconds: float) -> dict[str, float]:
        """`tflops` (10^12 model FLOP/s over all processes), `mfu`, `memory_gb` since the last row; counts anew.

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
