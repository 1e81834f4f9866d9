"""Checkpoint folders: written whole, checked by their sums and renamed into place; a kill leaves no half of one.

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

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.distributed.checkpoint.api import CheckpointException

from camae.errors import CamaeError
from camae.files import flush_file, output_errors, sync_folder, write_json
from camae.model.ca_mae import CAMAE
from camae.model.interface import Model
from camae.model.tensor_files import save_tensors
from camae.model.weights import MODEL_FILE, check_state, save, without_heads
from camae.training.distributed import Tensors, World, is_sharded, load_whole, placed_like, whole_model
from camae.training.run_record import CheckpointState
from camae.training.sharded_checkpoint import load_shards, save_shards
from camae.training.warm_start import TOKENS, grow

_OPTIMIZER_FILE = "optimizer.safetensors"
_EMA_FILE = "average.safetensors"
_HEADS_FILE = "heads.safetensors"
_STATE_FILE = "state.json"
_SUMS_FILE = "checksums.json"
_SHARDS = "shards"


class NotWrittenError(CamaeError):
    """A checkpoint could not be written; those before it are as they were."""


def checkpoint_folders(run: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("step_*") if p.is_dir())


def checkpoint_folder(run: Path, step: int) -> Path:
    """Folder of the checkpoint after `step` steps."""
    return run / "checkpoints" / f"step_{step:08d}"


def step_of(folder: Path) -> int:
    """Step of a checkpoint's folder."""
    return int(folder.name.removeprefix("step_"))


def save_checkpoint(
    run: Path,
    model: Model,
    optimizer: torch.optim.Optimizer,
    state: CheckpointState,
    keep: int,
    average: Tensors | None,
    world: World,
) -> None:
    """Write model, optimizer, EMA and `state`; then remove all but the newest `keep` checkpoints (0: none).

    All ranks of `world` call; rank 0 writes, and with sharded parameters every rank its shards.
    Raises NotWrittenError when the disk refuses (full, quota, gone); nothing that was there is touched then.
    """
    step = state["step"]
    folder = checkpoint_folder(run, step)
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        if world.is_rank0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        whole = _write_shards(temporary, model, optimizer, world) if is_sharded(model) else model
        if not world.is_rank0:
            return
        save(whole, temporary / MODEL_FILE, step=step)
        if whole is model:
            save_tensors(_optimizer_tensors(model, optimizer), temporary / _OPTIMIZER_FILE, {})
            if heads := _heads(model):
                save_tensors(heads, temporary / _HEADS_FILE, {})
        if average is not None:
            save_tensors(average, temporary / _EMA_FILE, {})
        write_json(temporary / _STATE_FILE, state)
        _finish(temporary, folder)
    except (OSError, SafetensorError, CheckpointException) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise NotWrittenError(_refusal(run, step, error)) from error
    for old in checkpoint_folders(run)[:-keep] if keep else []:
        shutil.rmtree(old, ignore_errors=True)


def _write_shards(temporary: Path, model: Model, optimizer: torch.optim.Optimizer, world: World) -> Model:
    """Every rank's shards; returns the whole model, for those who only want to use it."""
    world.all_reduce_max([0])  # a barrier: rank 0 has made the folder
    save_shards(temporary / _SHARDS, model, optimizer)
    return whole_model(model)


def _finish(temporary: Path, folder: Path) -> None:
    """Sum up and flush every file of a checkpoint, then rename its folder into place."""
    names = sorted(str(p.relative_to(temporary)) for p in temporary.rglob("*") if p.is_file())
    for name in names:
        flush_file(temporary / name)
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
        with output_errors(run):
            os.replace(folder, folder.with_name(f"damaged_{folder.name}"))
        damaged.append(f"{folder} is damaged ({why})")
    if damaged:
        raise CamaeError(f"{'; '.join(damaged)}; no intact checkpoint is left: begin anew in another folder")
    return None, []


def read_state(folder: Path) -> CheckpointState:
    """JSON part of a checkpoint."""
    return json.loads((folder / _STATE_FILE).read_text())


def known_channels(run: Path) -> list[str]:
    """Channel names of the decoders in a run's newest checkpoint; none where there is no checkpoint."""
    for folder in reversed(checkpoint_folders(run)):
        try:
            return list(read_state(folder).get("channels", ()))
        except (OSError, ValueError):
            continue
    return []


def read_average(folder: Path) -> Tensors:
    """EMA of the weights in a checkpoint, as `EMA.restore` takes it. Raises CamaeError where it is not readable."""
    try:
        return load_file(folder / _EMA_FILE)
    except (OSError, SafetensorError) as error:
        raise CamaeError(f"{folder}: the moving average of the weights cannot be read ({error})") from None


def restore_checkpoint(folder: Path, model: Model, optimizer: torch.optim.Optimizer) -> None:
    """Load a checkpoint's tensors into `model` and `optimizer`, sharded or not.

    Raises CamaeError where the files cannot be read or do not fit the model.
    """
    try:
        if (folder / _SHARDS).is_dir():
            load_shards(folder / _SHARDS, model, optimizer)
            return
        tensors = load_file(folder / _OPTIMIZER_FILE)
        weights = load_file(folder / MODEL_FILE)
        if _heads(model):
            weights |= load_file(folder / _HEADS_FILE)
    except (OSError, ValueError, SafetensorError, CheckpointException) as error:
        raise CamaeError(f"{folder}: not a readable checkpoint ({error})") from None
    if TOKENS in weights and isinstance(model, CAMAE):
        weights, tensors = grow(model, weights, tensors)
    check_state(folder / MODEL_FILE, model.state_dict(), weights)
    load_whole(model, weights)
    _restore_optimizer(model, optimizer, tensors)


def _heads(model: Model) -> Tensors:
    """Weights of a model that no model file holds: heads that only training needs."""
    state = model.state_dict()
    return {name: state[name] for name in state.keys() - without_heads(state).keys()}


def _damage(folder: Path) -> str | None:
    """Sentence on what is wrong with a checkpoint's files, or None."""
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


def _optimizer_tensors(model: Model, optimizer: torch.optim.Optimizer) -> Tensors:
    """`<parameter name>|<state name>` -> tensor."""
    names = {id(p): n for n, p in model.named_parameters()}
    tensors = {}
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            tensors[f"{names[id(parameter)]}|{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
    return tensors


def _restore_optimizer(model: Model, optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
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
        optimizer.state[parameter][state_name] = value if on_host else placed_like(parameter, value)
