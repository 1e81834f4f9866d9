"""Activation checkpointing: activations recomputed in the backward pass instead of saved."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from camae.errors import CamaeError
from camae.model.blocks import Block, ResidualBlock, Sequences, Stream


@runtime_checkable
class Recomputes(Protocol):
    """Module whose blocks can be checkpointed: every `recompute`-th one, none with 0."""

    recompute: int


def run_block(block: ResidualBlock, recompute: bool, stream: Stream, sequences: Sequences) -> Stream:
    """The stream after a block; with `recompute`, and where gradients are asked for, under checkpointing.

    Checkpointing restores the states of the random generators: stochastic depth draws the same numbers again. It
    saves the block's input, for which the last update is added first.
    """
    if recompute and torch.is_grad_enabled():
        return run_checkpointed(block, Stream(block.value(stream)), sequences)
    return block(stream, sequences)


def run_checkpointed(module: nn.Module, *inputs: torch.Tensor | Stream | Sequences) -> Any:
    """module(*inputs), computed again in the backward pass."""
    return checkpoint(module, *inputs, use_reentrant=False)


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
