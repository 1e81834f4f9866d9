"""Optimizer, learning-rate and mask-ratio schedules, and the exponential moving average of the weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from camae.errors import CamaeError
from camae.kernels.lion import Lion
from camae.training.config import MaskSchedule, TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Lion or AdamW with decoupled weight decay on matrices only (He et al.: not on biases, norms, tokens)."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    decayed = [p for n, p in named if p.ndim >= 2 and "token" not in n]
    others = [p for n, p in named if not (p.ndim >= 2 and "token" not in n)]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if config.optimizer == "lion":
        return Lion(groups, lr=config.peak_lr, betas=config.betas)
    # The fused form can skip a step by a flag on the device (`step_unless`), and saves a CPU a Python loop.
    fused = not any(isinstance(p, DTensor) and not p.is_cuda for _, p in named)
    return torch.optim.AdamW(groups, lr=config.peak_lr, betas=config.betas, fused=fused)


def freeze(model: nn.Module, prefixes: tuple[str, ...]) -> None:
    """Exclude from training every parameter whose name starts with one of `prefixes`.

    Raises CamaeError for a prefix of no parameter, or where nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            raise CamaeError(
                f"freeze: no parameter is named {prefix!r}...; names begin like {names[0]}, {names[-1]}"
            )
    for name, parameter in model.named_parameters():
        if name.startswith(prefixes):
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise CamaeError(f"freeze={list(prefixes)} leaves nothing to train")


def learning_rate(step: int, steps: int, peak: float, schedule: str, warmup: float) -> float:
    """Learning rate of optimizer step `step` (0-based) of `steps`.

    "onecycle": cosine from peak/25 up to peak over the warm-up share, then cosine down to peak/250,000 (the
    one-cycle policy of Smith and Topin). "cosine": linear warm-up from 0, then cosine to 0. "constant":
    linear warm-up, then constant.
    """
    top = warmup * steps
    if schedule == "onecycle":
        if step < top:
            return _cosine(peak / 25, peak, step / top)
        return _cosine(peak, peak / 250_000, (step - top) / max(1.0, steps - 1 - top))
    if step < top:
        return peak * (step + 1) / (top + 1)
    if schedule == "constant":
        return peak
    return _cosine(peak, 0.0, (step - top) / max(1.0, steps - top))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, share))) / 2


def mask_ratio_at(step: int, steps: int, schedule: MaskSchedule) -> float:
    """Mask ratio of optimizer step `step` (0-based) of `steps`; pairs hold their ratio before the first and after the
    last.
    """
    if isinstance(schedule, (int, float)):
        return float(schedule)
    points = [s for s in schedule if isinstance(s, tuple)]
    if not points:
        cycled = schedule[step % len(schedule)]
        assert not isinstance(cycled, tuple)
        return float(cycled)
    share = step / max(1, steps - 1)
    if share <= points[0][0]:
        return float(points[0][1])
    for (left, low), (right, high) in itertools.pairwise(points):
        if share <= right:
            return float(low + (high - low) * (share - left) / (right - left))
    return float(points[-1][1])


class EMA:
    """Exponential moving average of the weights, in float32.

    average <- decay * average + (1 - decay) * weight after every optimizer step. The decay of update t is
    min(decay, (1 + t) / (10 + t)), so that the first random weights are soon forgotten. Parameters that are not
    trained are left out.
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise CamaeError(f"ema {decay} is not a decay in [0, 1)")
        self.decay, self.updates = decay, 0
        self._weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._average = {n: p.detach().float().clone() for n, p in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Average the current weights in."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        weights = [self._weights[n].detach().float() for n in self._average]
        torch._foreach_lerp_(list(self._average.values()), weights, 1 - decay)

    def state(self) -> dict[str, torch.Tensor]:
        """State for a checkpoint: the averages by parameter name, and "updates"."""
        stored = {n: a.detach().cpu().contiguous() for n, a in self._average.items()}
        return stored | {"updates": torch.tensor(self.updates)}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue from `state()`. A parameter that is not there (a new channel's decoder) starts at its weight."""
        stored = dict(state)
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


def clip_gradients(model: nn.Module, limit: float) -> torch.Tensor:
    """Clip the gradient to the norm `limit` (0: no limit), in place; returns its norm before that."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit or math.inf)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
