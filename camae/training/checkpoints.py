"""Training state on disk: whole folders, checked by their sums, renamed into place: a kill leaves no half of one.

`step_<n>/` holds model.safetensors, the optimizer's state and state.json; checksums.json has the SHA-256 of each
file. Runs with sharded parameters keep the optimizer and the weights under `shards/` as well, written by
torch.distributed.checkpoint (safetensors), which loads them into any number of processes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.api import CheckpointException

from camae.errors import CamaeError
from camae.files import sync_folder, write_json
from camae.model.ca_mae import CAMAE
from camae.model.weights import MODEL_FILE, check_state, load, save
from camae.training.distributed import World
from camae.training.new_channels import TOKENS, grow
from camae.training.sharded import is_sharded, like, load_shards, save_shards, take_whole, whole_model

_OPTIMIZER_FILE = "optimizer.safetensors"
_AVERAGE_FILE = "average.safetensors"
_STATE_FILE = "state.json"
_SUMS_FILE = "checksums.json"
_SHARDS = "shards"


class NotWrittenError(CamaeError):
    """A checkpoint could not be written; those before it are as they were."""


def checkpoint_folders(run: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("step_*") if p.is_dir())


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps is."""
    return run / "checkpoints" / f"step_{step:08d}"


def step_of(folder: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(folder.name.removeprefix("step_"))


def save_checkpoint(
    run: Path,
    step: int,
    model: Any,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int,
    average: dict[str, torch.Tensor] | None = None,
    world: World | None = None,
) -> Path:
    """Write model, optimizer and `state` after `step` steps; then remove all but the newest `keep`.

    All ranks of `world` call; the first writes, and with sharded parameters every rank its shards.
    Raises NotWrittenError when the disk refuses (full, quota, gone); nothing that was there is touched then.
    """
    main = world is None or world.main
    folder = checkpoint_folder(run, step)
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        if main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        whole = _write_shards(temporary, model, optimizer, world) if is_sharded(model) else model
        if not main:
            return folder
        save(whole, temporary / MODEL_FILE, step=step)
        if whole is model:
            save_file(_optimizer_tensors(model, optimizer), temporary / _OPTIMIZER_FILE)
        if average is not None:
            save_file(average, temporary / _AVERAGE_FILE)
        write_json(temporary / _STATE_FILE, state | {"step": step})
        finish_folder(temporary, folder)
    except (OSError, SafetensorError, CheckpointException) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise NotWrittenError(_refusal(run, step, error)) from error
    for old in checkpoint_folders(run)[:-keep] if keep else []:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def _write_shards(temporary: Path, model: Any, optimizer: torch.optim.Optimizer, world: World | None) -> Any:
    """Every rank's shards; returns the whole model, for those who only want to use it."""
    if world is not None:
        world.most([0])  # the folder is there
    save_shards(temporary / _SHARDS, model, optimizer)
    return whole_model(model)


def finish_folder(temporary: Path, folder: Path) -> None:
    """Sum up and flush every file of a checkpoint, then rename its folder into place."""
    names = sorted(str(p.relative_to(temporary)) for p in temporary.rglob("*") if p.is_file())
    for name in names:
        with open(temporary / name, "rb+") as file:
            os.fsync(file.fileno())
    write_json(temporary / _SUMS_FILE, {name: _sha256(temporary / name) for name in names})
    sync_folder(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    sync_folder(folder.parent)


def newest_intact(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files have their sums, and one sentence for each newer one that has not.

    Damaged folders are renamed to `damaged_step_<n>`. Raises CamaeError when every checkpoint is damaged.
    """
    damaged: list[str] = []
    for folder in reversed(checkpoint_folders(run)):
        if (why := _damage(folder)) is None:
            return folder, [f"{line}: using {folder.name}, the one before" for line in damaged]
        os.replace(folder, folder.with_name(f"damaged_{folder.name}"))
        damaged.append(f"{folder} is damaged ({why})")
    if damaged:
        raise CamaeError(f"{'; '.join(damaged)}; no intact checkpoint is left: begin anew in another folder")
    return None, []


def read_state(folder: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint."""
    return json.loads((folder / _STATE_FILE).read_text())


def known_channels(run: Path) -> list[str]:
    """Channel names of the decoders in a run's newest checkpoint; none where there is no checkpoint."""
    for folder in reversed(checkpoint_folders(run)):
        try:
            return list(read_state(folder).get("channels", ()))
        except (OSError, ValueError):
            continue
    return []


def read_average(folder: Path) -> dict[str, torch.Tensor]:
    """The moving average of the weights in a checkpoint, as `EMA.restore` takes it."""
    try:
        return load_file(folder / _AVERAGE_FILE)
    except (OSError, SafetensorError) as error:
        raise CamaeError(f"{folder}: the moving average of the weights cannot be read ({error})") from None


def restore_checkpoint(folder: Path, model: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a checkpoint's tensors into `model` and `optimizer`, sharded or not; returns its state."""
    try:
        state = read_state(folder)
        if (folder / _SHARDS).is_dir():
            load_shards(folder / _SHARDS, model, optimizer)
            return state
        tensors = load_file(folder / _OPTIMIZER_FILE)
        weights = load_file(folder / MODEL_FILE)
    except (OSError, ValueError, SafetensorError, CheckpointException) as error:
        raise CamaeError(f"{folder}: not a readable checkpoint ({error})") from None
    if TOKENS in weights and isinstance(model, CAMAE):
        weights, tensors = grow(model, weights, tensors)
    check_state(folder / MODEL_FILE, model.state_dict(), weights)
    take_whole(model, weights)
    _restore_optimizer(model, optimizer, tensors)
    return state


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        sums = json.loads((folder / _SUMS_FILE).read_text())
        for name, expected in sums.items():
            if _sha256(folder / name) != expected:
                return f"{name} does not have its checksum"
    except (OSError, ValueError) as error:
        return str(error)
    return None if _STATE_FILE in sums else f"{_SUMS_FILE} does not name {_STATE_FILE}"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refusal(run: Path, step: int, error: BaseException) -> str:
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    reason = "the disk is full" if full else str(error)
    kept = checkpoint_folders(run)
    last = f"{kept[-1].name} stays the last good one" if kept else "there is no earlier one"
    return f"the checkpoint of step {step} could not be written to {run} ({reason}); {last}"


def initialize(model: CAMAE, source: str) -> list[str]:
    """Start from the weights at `source`: the encoder whole, decoders for channels that both know.

    Returns the channels that start anew. Raises CamaeError when the encoders differ.
    """
    other = load(source)
    check_state(Path(source), model.encoder.state_dict(), other.encoder.state_dict())
    for setting in ("bias_layout", "block", "heads", "norm_eps"):  # same tensors, other math
        mine, theirs = (getattr(m.config, setting, None) for m in (model, other))
        if mine != theirs:
            raise CamaeError(
                f"{source}: its encoder has {setting} {theirs!r} and the model to train {mine!r}; set "
                f"model_options.{setting} = {json.dumps(theirs)}"
            )
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
        # AdamW counts steps on the host, its fused form on the device.
        on_host = value.ndim == 0 and not optimizer.defaults.get("fused")
        optimizer.state[parameter][state_name] = value if on_host else like(parameter, value)
