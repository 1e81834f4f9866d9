"""The optimizer of a recipe: parameter groups, freezing, Lion or AdamW."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from camae.errors import CamaeError
from camae.kernels.lion import Lion
from camae.model.blocks import set_block_options
from camae.training.config import Recipe


def freeze(model: nn.Module, prefixes: tuple[str, ...]) -> None:
    """Stop training every parameter whose name starts with one of `prefixes`."""
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


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Lion or AdamW with decoupled weight decay on matrices only (He et al.: not on biases, norms, tokens)."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    decayed = [p for n, p in named if p.ndim >= 2 and "token" not in n]
    others = [p for n, p in named if not (p.ndim >= 2 and "token" not in n)]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if recipe.optimizer == "lion":
        return Lion(groups, lr=recipe.peak_lr, betas=recipe.betas)
    # The fused form can skip a step by a flag on the device (`spikes.step_unless`), and saves a CPU a Python loop.
    fused = not any(isinstance(p, DTensor) and not p.is_cuda for _, p in named)
    return torch.optim.AdamW(groups, lr=recipe.peak_lr, betas=recipe.betas, fused=fused)


def set_recompute(model: nn.Module, every: int, selective: bool = False) -> None:
    """Activation checkpointing: every n-th encoder block and all decoder blocks are computed again in the backward.

    0 keeps all activations; with `selective` their norms and GELUs alone are computed again, in all blocks.
    Raises CamaeError for models whose blocks cannot.
    """
    parts = [m for m in model.modules() if hasattr(m, "recompute")]
    if every and not parts:
        raise CamaeError(
            f"recompute={every}: {type(model).__name__} has no blocks that can be computed again"
        )
    for part in parts:
        part.recompute = every  # type: ignore[assignment]
    set_block_options(model, keep=not selective)
