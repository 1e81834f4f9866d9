"""Channels that appear when a run is continued: they get decoders, and nothing else changes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from camae.model.ca_mae import CAMAE

TOKENS = "decoder.channel_tokens_CD"
Tensors = dict[str, torch.Tensor]


def appended(known: Sequence[str], asked: Sequence[str]) -> tuple[str, ...]:
    """The known channels in their order, then those that are new."""
    return (*known, *(name for name in asked if name not in known))


def grow(model: CAMAE, weights: Tensors, optimizer_state: Tensors) -> tuple[Tensors, Tensors]:
    """A checkpoint of fewer channels as one of the model's.

    model: its first channels are the checkpoint's, in order; the others keep the weights they start with.
    weights: by parameter name. optimizer_state: by `<parameter name>|<state name>`; new rows of the channel
    tokens start from zero, and new parameters have no state yet, as at the start of a run.
    """
    known = len(weights[TOKENS])
    if known == len(model.config.channels):
        return weights, optimizer_state
    own = model.state_dict()
    grown = dict(weights)
    for name, value in own.items():
        if name not in weights and _is_of_new_channel(name, known):
            grown[name] = value.detach().clone()
    grown[TOKENS] = torch.cat([weights[TOKENS], own[TOKENS][known:].to(weights[TOKENS])])
    state = dict(optimizer_state)
    for key, value in optimizer_state.items():
        if key.split("|")[0] == TOKENS and value.shape == weights[TOKENS].shape:
            state[key] = torch.cat([value, value.new_zeros(len(own[TOKENS]) - known, value.shape[1])])
    return grown, state


def _is_of_new_channel(name: str, known: int) -> bool:
    """Whether a parameter belongs to a decoder past the known ones: `decoder.<part>.<channel>...`."""
    part, _, rest = name.removeprefix("decoder.").partition(".")
    number = rest.partition(".")[0]
    return part in ("stacks", "cross", "heads") and number.isdigit() and int(number) >= known
