"""Training state on disk: whole folders, renamed into place, so that a kill never leaves half of one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from camae.errors import CamaeError
from camae.files import write_json
from camae.model.ca_mae import CAMAE
from camae.model.checkpoint import MODEL_FILE, check_state, load, save

_OPTIMIZER_FILE = "optimizer.safetensors"
_STATE_FILE = "state.json"


def checkpoint_folders(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("step_*") if (p / _STATE_FILE).is_file())


def save_checkpoint(
    run: Path, step: int, model: CAMAE, optimizer: torch.optim.Optimizer, state: dict[str, Any], keep: int
) -> Path:
    """Write model, optimizer and `state` after `step` steps; remove all but the newest `keep`."""
    folder = run / "checkpoints" / f"step_{step:08d}"
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save(model, temporary / MODEL_FILE, step=step)
    save_file(_optimizer_tensors(model, optimizer), temporary / _OPTIMIZER_FILE)
    write_json(temporary / _STATE_FILE, state | {"step": step})
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    for old in checkpoint_folders(run)[:-keep] if keep else []:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def restore_checkpoint(folder: Path, model: CAMAE, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a checkpoint's tensors into `model` and `optimizer`; returns its state."""
    try:
        state = json.loads((folder / _STATE_FILE).read_text())
        tensors = load_file(folder / _OPTIMIZER_FILE)
        weights = load_file(folder / MODEL_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise CamaeError(
            f"{folder}: not a readable checkpoint ({error}); delete it to use the one before"
        ) from None
    check_state(folder / MODEL_FILE, model.state_dict(), weights)
    model.load_state_dict(weights)
    _restore_optimizer(model, optimizer, tensors)
    return state


def initialize(model: CAMAE, source: str) -> list[str]:
    """Start from the weights at `source`: the encoder whole, decoders for channels that both know.

    Returns the channels that start anew. Raises CamaeError when the encoders differ.
    """
    other = load(source)
    check_state(Path(source), model.encoder.state_dict(), other.encoder.state_dict())
    model.encoder.load_state_dict(other.encoder.state_dict())
    if model.config.decoder != other.config.decoder or model.config.patch != other.config.patch:
        return model.channels
    theirs = {name: i for i, name in enumerate(other.channels)}
    mine = dict(model.decoder.state_dict())
    for key, value in other.decoder.state_dict().items():
        if (
            key in mine
            and mine[key].shape == value.shape
            and not key.startswith(("stacks.", "channel_tokens"))
        ):
            mine[key] = value
    for i, name in enumerate(model.channels):
        if name not in theirs:
            continue
        j = theirs[name]
        mine["channel_tokens_CD"][i] = other.decoder.channel_tokens_CD[j].detach()
        for key, value in other.decoder.stacks[j].state_dict().items():
            mine[f"stacks.{i}.{key}"] = value
        if model.config.decoder.cross_attention == "per_channel":
            for part in ("cross", "heads"):
                for key, value in getattr(other.decoder, part)[j].state_dict().items():
                    mine[f"{part}.{i}.{key}"] = value
    model.decoder.load_state_dict(mine)
    return [name for name in model.channels if name not in theirs]


def _optimizer_tensors(model: CAMAE, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """`<parameter name>|<state name>` -> tensor."""
    names = {id(p): n for n, p in model.named_parameters()}
    tensors = {}
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            tensors[f"{names[id(parameter)]}|{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
    return tensors


def _restore_optimizer(
    model: CAMAE, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]
) -> None:
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for key, value in tensors.items():
        name, state_name = key.split("|")
        if name not in parameters:
            raise CamaeError(
                f"the checkpoint has optimizer state for {name!r}, which the model does not have"
            )
        parameter = parameters[name]
        moved = value if value.ndim == 0 else value.to(parameter.device)
        optimizer.state[parameter][state_name] = moved
