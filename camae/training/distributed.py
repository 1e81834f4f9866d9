"""Many processes as one run: who I am, adding up over ranks, agreeing, and the model's wrapper.

Launched by torchrun, every process calls `camae.train` with the same arguments; each has one device. Gradients and
losses are sums over ranks of terms that are divided by the global number of crops, so that any number of processes
computes what one does.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from camae.dataloader.plane_batch import PlaneBatch
from camae.errors import CamaeError

_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_host_group: Any = None


@dataclass(frozen=True)
class World:
    """The processes of a run. A run without torchrun is a world of one."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls, device: str | None) -> World:
        """The world this process was launched into; process groups are made on the first call and kept.

        device: "cpu", "cuda" or None (CUDA where there is one). Under torchrun each process takes the GPU of its
        LOCAL_RANK. Raises CamaeError where a node has fewer GPUs than processes.
        """
        kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
        launched = all(name in os.environ for name in _LAUNCHED)
        if not launched and not dist.is_initialized():
            return cls(0, 1, torch.device(kind))
        if torch.device(kind).type == "cuda":
            local = int(os.environ.get("LOCAL_RANK", 0))
            if local >= torch.cuda.device_count():
                raise CamaeError(
                    f"process {local} of this node has no GPU: there are {torch.cuda.device_count()}; "
                    "lower --nproc-per-node"
                )
            kind = f"cuda:{local}"
            torch.cuda.set_device(local)
        if not dist.is_initialized():
            store, rank, size = _meeting_place()
            backend = "nccl" if kind.startswith("cuda") else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=size)
            atexit.register(_leave)
        return cls(dist.get_rank(), dist.get_world_size(), torch.device(kind))

    @property
    def main(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, in place, on the tensor's device."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self._group(tensor.device))
        return tensor

    def most(self, numbers: list[int]) -> list[int]:
        """The largest of each number over ranks. Goes through the hosts: no device is waited for."""
        if self.size == 1:
            return numbers
        found = torch.tensor(numbers)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self._group(found.device))
        return found.tolist()

    def from_main(self, number: int) -> int:
        """Rank 0's number."""
        return self.most([number if self.main else -(2**62)])[0]

    def gather(self, value: dict[str, Any]) -> list[dict[str, Any]]:
        """Every rank's value, on all ranks."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self._group(torch.device("cpu")))
        return found

    def _group(self, device: torch.device) -> Any:
        """The default group, or for host tensors beside NCCL a gloo group."""
        global _host_group
        if device.type != "cpu" or dist.get_backend() == "gloo":
            return None
        if _host_group is None:
            _host_group = dist.new_group(backend="gloo")
        return _host_group


def _meeting_place() -> tuple[dist.Store, int, int]:
    """(store, rank, processes) of the launch.

    torchrun keeps its store over restarts, and with it the addresses of processes that died: on one node each
    attempt gets keys of its own. On several nodes restart counts may differ, so the store is taken as it is.
    """
    store, rank, size = next(iter(dist.rendezvous("env://")))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT")
    if attempt is not None and os.environ.get("GROUP_WORLD_SIZE") == "1":
        store = dist.PrefixStore(f"attempt_{attempt}", store)
    return store, rank, size


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


class Touched(nn.Module):
    """A model whose loss touches the parameters of channels that its batch does not show.

    DDP and FSDP wait for the gradient of every parameter on every rank; a channel that a rank did not see would
    keep them waiting. An empty slice adds exactly nothing to the loss and a zero to the gradient.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: PlaneBatch, noise: torch.Tensor, **options: Any) -> dict[str, torch.Tensor]:
        losses = self.model(batch, noise, **options)
        shown = set(batch.names_K)
        absent = [ps for name, ps in channel_parameters(self.model).items() if name not in shown]
        touched = [p[:0].sum() for ps in absent for p in ps if p.requires_grad]
        if torch.is_grad_enabled() and touched:
            losses = losses | {
                "total": losses["total"] + torch.stack(touched).sum().to(losses["total"].dtype)
            }
        return losses


def channel_parameters(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Parameters that only planes of one channel reach, by channel name; none for models without such."""
    decoder = getattr(model, "decoder", None)
    parts = [getattr(decoder, name, ()) for name in ("stacks", "cross", "heads")]
    channels = tuple(getattr(model.config, "channels", ()))  # type: ignore[union-attr]
    if decoder is None or len(getattr(decoder, "stacks", ())) != len(channels):
        return {}
    return {
        name: [p for part in parts if len(part) == len(channels) > 1 for p in part[i].parameters()]
        for i, name in enumerate(channels)
    }


class Replicas:
    """Gradients of one model in every process (DDP), or of one model shared among them (FSDP2)."""

    def __init__(self, model: nn.Module, world: World, parallel: str, bf16: bool):
        self.model, self.world = model, world
        self.sharded = parallel == "fsdp"
        self.of_channels = channel_parameters(model)
        if self.sharded and not dist.is_initialized():
            raise CamaeError("parallel='fsdp' shares one model among processes: launch with torchrun")
        self.net: nn.Module = model
        if self.sharded:
            self.net = _fully_shard(Touched(model), world, bf16)
            self.of_channels = channel_parameters(model)
        elif world.size > 1:
            self.net = nn.parallel.DistributedDataParallel(Touched(model), gradient_as_bucket_view=True)

    def backward(self, last: bool) -> contextlib.AbstractContextManager:
        """Around a pass's forward and backward: gradients are added up over ranks in the step's last one only."""
        if self.sharded:
            self.net.set_requires_gradient_sync(last)  # type: ignore[operator]
        elif self.world.size > 1 and not last:
            return self.net.no_sync()  # type: ignore[operator]
        return contextlib.nullcontext()

    def forget_absent(self, seen: list[bool]) -> None:
        """Channels that no rank saw in this step keep their parameters as they are, as in one process."""
        for present, parameters in zip(seen, self.of_channels.values(), strict=True):
            if not present:
                for parameter in parameters:
                    parameter.grad = None


def _fully_shard(net: Touched, world: World, bf16: bool) -> nn.Module:
    """FSDP2: each encoder block a group of its own, everything else (the decoders too) in the root's.

    Decoders are not groups of their own because ranks with different channels run different ones: collectives
    would not meet.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    # Inputs are not cast: masks are decided by comparing fp32 numbers.
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": policy}
    for block in getattr(net.model.encoder, "blocks", ()):  # type: ignore[union-attr]
        fully_shard(block, **options)
    fully_shard(net, reshard_after_forward=False, **options)
    return net
