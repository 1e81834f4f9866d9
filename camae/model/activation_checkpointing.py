"""Activation checkpointing: activations recomputed in the backward pass instead of saved."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from camae.errors import CamaeError
from camae.model.blocks import Block, Sequences


@runtime_checkable
class Recomputes(Protocol):
    """Module whose blocks can be checkpointed: every `recompute`-th one, none with 0."""

    recompute: int


def run_block(block: nn.Module, recompute: bool, *inputs: torch.Tensor | Sequences) -> torch.Tensor:
    """block(*inputs); with `recompute`, and where gradients are asked for, under checkpointing.

    Checkpointing restores the states of the random generators: stochastic depth draws the same numbers again.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)


def set_recompute(model: nn.Module, every: int, selective: bool = False) -> None:
    """Set the activation checkpointing of a model.

    every: every n-th block of the encoder and all blocks of the decoders; 0: none. selective: norms and GELUs of all
    blocks, products and attention saved.
    Raises CamaeError for a model without blocks that can be checkpointed.
    """
    parts = [module for module in model.modules() if isinstance(module, Recomputes)]
    if every and not parts:
        raise CamaeError(
            f"recompute={every}: {type(model).__name__} has no blocks that can be computed again"
        )
    for part in parts:
        part.recompute = every
    for module in model.modules():
        if isinstance(module, Block):
            module.save_activations = not selective
