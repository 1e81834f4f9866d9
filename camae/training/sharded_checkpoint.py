"""Sharded checkpoint of FSDP2 parameters, by torch.distributed.checkpoint.

Each rank writes its shards as safetensors; any number of processes, one included, reads them back.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import checkpoint as dcp

from camae.training.distributed import Tensors


def save_shards(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write weights and optimizer state, every rank its part (all must call)."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    dcp.save(dict(_tensors(model, optimizer)), storage_writer=writer)


def load_shards(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Read weights and optimizer state into any number of processes; the model may be sharded or not."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    stored = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for key, found in stored.items():
        if key.startswith("optimizer.") and isinstance(found, TensorStorageMetadata):
            name, state_name = key.removeprefix("optimizer.").split("|")
            parameter = parameters[name]
            whole = tuple(found.size) == tuple(parameter.shape)
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
