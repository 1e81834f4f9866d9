"""Checkpoints of parameters that are shared among processes (FSDP2), by torch.distributed.checkpoint.

Each rank writes its shards as safetensors; any number of processes, one included, reads them back.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.tensor import DTensor, distribute_tensor

from camae.model import registry as families

Tensors = dict[str, torch.Tensor]


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds only parts of the parameters."""
    return any(isinstance(p, DTensor) for p in model.parameters())


def whole_tensors(model: nn.Module) -> Tensors:
    """The full state of a sharded model on the host, on every rank (all must call)."""
    return {
        n: (t.full_tensor() if isinstance(t, DTensor) else t).detach().cpu()
        for n, t in model.state_dict().items()
    }


def whole_model(model: Any) -> Any:
    """The model itself, or of a sharded one a copy on the host with all of its weights (all ranks must call)."""
    if not is_sharded(model):
        return model
    weights = whole_tensors(model)
    copy = families.model_class(model.config)(model.config)
    copy.load_state_dict(weights)
    return copy


def take_whole(model: nn.Module, weights: Tensors) -> None:
    """Full weights into a model, sharded or not."""
    if not is_sharded(model):
        model.load_state_dict(weights)
        return
    with torch.no_grad():
        for name, target in model.state_dict().items():
            target.copy_(like(target, weights[name]))


def like(target: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """`value` on the target's device and, where the target is sharded, sharded as it is."""
    value = value.to(target.device)
    if isinstance(target, DTensor) and value.shape == target.shape:
        return distribute_tensor(value, target.device_mesh, target.placements)
    return value


def save_shards(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Weights and optimizer state, every rank its part (all must call)."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    dcp.save(dict(_tensors(model, optimizer)), storage_writer=writer)


def load_shards(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The opposite, into any number of processes; the model may be sharded or not."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    stored = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for key, found in stored.items():
        if key.startswith("optimizer."):
            name, state_name = key.removeprefix("optimizer.").split("|")
            parameter = parameters[name]
            whole = tuple(found.size) == tuple(parameter.shape)  # type: ignore[union-attr]
            optimizer.state[parameter][state_name] = torch.zeros_like(parameter) if whole else torch.zeros(())
    reader = HuggingFaceStorageReader(str(folder))
    # Scalars are stored with one element and come back through a view.
    with torch.no_grad():
        dcp.load(_tensors(model, optimizer), storage_reader=reader, no_dist=not dist.is_initialized())


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """`model.<name>` and `optimizer.<parameter name>|<state name>`, sharing memory with what they are taken from."""
    tensors = {f"model.{name}": value.detach() for name, value in model.state_dict().items()}
    names = {id(p): n for n, p in model.named_parameters()}
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            stored = value.detach().view(1) if value.ndim == 0 else value.detach()
            tensors[f"optimizer.{names[id(parameter)]}|{key}"] = stored
    return tensors
