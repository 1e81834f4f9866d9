"""Warm start: the model of a run, its weights from another model, and decoders for channels that are new."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from camae.dataloader.mixture import Source
from camae.errors import CamaeError
from camae.model import registry
from camae.model.backends import Backends
from camae.model.ca_mae import CAMAE
from camae.model.interface import Config, Model
from camae.model.weights import check_state, load
from camae.training.config import TrainConfig
from camae.training.data import channels_of
from camae.training.distributed import Tensors
from camae.training.optimization import freeze

TOKENS = "decoder.channel_tokens_CD"


def model_config(config: TrainConfig, training: Sequence[Source], known_channels: Sequence[str]) -> Config:
    """The configuration of a run's model.

    known_channels: the run's channels so far, which stay first and in order; none for a new run.
    """
    named = config.model_options.get("channels")
    asked = tuple(named) if isinstance(named, (list, tuple)) else config.channels or channels_of(training)
    options = config.model_options | {"channels": appended(known_channels, asked)}
    return registry.config_for(config.model, training[0].manifest, **options)


def build_model(
    config: TrainConfig, training: Sequence[Source], made: Config, device: torch.device
) -> tuple[Model, list[str]]:
    """The model at the start of a run, and the channels whose decoders did not come from `config.init`.

    made: its configuration, of `model_config`.
    """
    channels = channels_of(training)
    model = registry.from_config(made)
    if len(training) > 1 and not isinstance(model, CAMAE):
        raise CamaeError(
            f"{config.model} trains on one data set with one channel set; ca_mae models mix them"
        )
    if config.backends:
        model.use_backends(Backends.of(config.backends))
    new_channels = initialize(model, config.init) if config.init else []
    model.to(device)
    model.check_channels(channels)
    freeze(model, config.freeze)
    return model, new_channels


def initialize(model: Model, source: str) -> list[str]:
    """Start from the weights at `source`: the encoder whole, decoders for channels that both know.

    Returns the channels that start anew. Raises CamaeError when the encoders differ.
    """
    other: Model = load(source)
    check_state(Path(source), model.encoder.state_dict(), other.encoder.state_dict())
    for setting in ("bias_layout", "block", "heads", "norm_eps"):  # same tensors, other math
        mine, theirs = (getattr(m.config, setting, None) for m in (model, other))
        if mine != theirs:
            raise CamaeError(
                f"{source}: its encoder has {setting} {theirs!r} and the model to train {mine!r}; set "
                f"model_options.{setting} = {json.dumps(theirs)}"
            )
    model.encoder.load_state_dict(other.encoder.state_dict())
    if not isinstance(model, CAMAE) or not isinstance(other, CAMAE):
        return model.channels
    if model.config.decoder != other.config.decoder or model.config.patch != other.config.patch:
        return model.channels
    model.decoder.load_state_dict(_decoder_state(model, other))
    return [name for name in model.channels if name not in other.channels]


def _decoder_state(model: CAMAE, other: CAMAE) -> Tensors:
    """Decoder weights of `other` for the channels that it knows and for what they share, else those of `model`."""
    state = dict(model.decoder.state_dict())
    for key, value in other.decoder.state_dict().items():
        of_a_channel = key.startswith(("stacks.", "channel_tokens"))
        if key in state and state[key].shape == value.shape and not of_a_channel:
            state[key] = value
    own_cross_attention = model.config.decoder.cross_attention == "per_channel"
    parts = ("stacks", "cross", "heads") if own_cross_attention else ("stacks",)
    for i, name in enumerate(model.channels):
        if name not in other.channels:
            continue
        j = other.channels.index(name)
        state["channel_tokens_CD"][i] = other.decoder.channel_tokens_CD[j].detach()
        for part in parts:
            for key, value in getattr(other.decoder, part)[j].state_dict().items():
                state[f"{part}.{i}.{key}"] = value
    return state


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
