"""An exponential moving average of the weights, kept beside them and saved with every checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from camae.errors import CamaeError


class EMA:
    """average <- decay * average + (1 - decay) * weight after every optimizer step, in float32.

    The decay of update t is min(decay, (1 + t) / (10 + t)), so that the first random weights are soon forgotten.
    Parameters that are not trained are left out.
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise CamaeError(f"ema {decay} is not a decay in [0, 1)")
        self.decay, self.updates = decay, 0
        self._weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._average = {n: p.detach().float().clone() for n, p in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the current weights in."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        weights = [self._weights[n].detach().float() for n in self._average]
        torch._foreach_lerp_(list(self._average.values()), weights, 1 - decay)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint stores: the averages by parameter name, and "updates"."""
        stored = {n: a.detach().cpu().contiguous() for n, a in self._average.items()}
        return stored | {"updates": torch.tensor(self.updates)}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Continue from `tensors()`. A parameter that is not there (a decoder begun since) starts at its weight."""
        stored = dict(tensors)
        self.updates = int(stored.pop("updates"))
        for name, weight in self._weights.items():
            value = stored.get(name)
            if value is not None and value.shape == weight.shape:
                self._average[name].copy_(value)
            else:
                self._average[name].copy_(weight.detach())
                if value is not None:  # rows were added: channel tokens
                    self._average[name][: len(value)].copy_(value)

    @torch.no_grad()
    def copy_to_weights(self) -> None:
        """Replace the weights by their average."""
        for name, average in self._average.items():
            self._weights[name].copy_(average)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averaged weights in the model for the duration of a `with` block."""
        kept = {n: w.detach().clone() for n, w in self._weights.items()}
        self.copy_to_weights()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in self._weights.items():
                    weight.copy_(kept[name])
