"""Data parallelism: process groups, reductions over ranks, and the DDP or FSDP2 wrapper of the model.

Launched by torchrun, every process calls `camae.train` with the same arguments; each has one device. Gradients and
losses are sums over ranks of terms that are divided by the global number of crops, so that any number of processes
computes what one does.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from camae.dataloader.plane_batch import PlaneBatch
from camae.errors import CamaeError
from camae.model import registry
from camae.model.devices import check_device
from camae.model.interface import Model
from camae.model.weights import without_heads

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

T = TypeVar("T")
Tensors = dict[str, torch.Tensor]
_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_host_group: dist.ProcessGroup | None = None


@dataclass(frozen=True)
class World:
    """Process group of a run. A run without torchrun is a world of one process."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls, device: str | None) -> World:
        """The world this process was launched into; process groups are made on the first call and kept.

        device: "cpu", "cuda" or None (CUDA where there is one). Under torchrun each process takes the GPU of its
        LOCAL_RANK. Raises CamaeError where a node has fewer GPUs than processes, MissingBackendError without a GPU.
        """
        kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
        check_device(kind)
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
            store, rank, size = _rendezvous()
            backend = "nccl" if kind.startswith("cuda") else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=size)
            atexit.register(_destroy_process_group)
        return cls(dist.get_rank(), dist.get_world_size(), torch.device(kind))

    @property
    def is_rank0(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, in place, on the tensor's device."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self._group(tensor.device))
        return tensor

    def all_reduce_sums(self, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Sum of scalars over ranks, by name, in one exchange."""
        if self.size == 1:
            return values
        total_N = self.all_reduce_sum(torch.stack([value.float() for value in values.values()]))
        return dict(zip(values, total_N.unbind(), strict=True))

    def all_reduce_max(self, numbers: list[int]) -> list[int]:
        """Largest of each number over ranks. Goes through the hosts: no device is waited for."""
        if self.size == 1:
            return numbers
        found = torch.tensor(numbers)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self._group(found.device))
        return found.tolist()

    def broadcast_from_rank0(self, number: int) -> int:
        """Rank 0's number."""
        return self.all_reduce_max([number if self.is_rank0 else -(2**62)])[0]

    def all_gather(self, value: T) -> list[T]:
        """Every rank's value, on all ranks."""
        if self.size == 1:
            return [value]
        found = [value] * self.size
        dist.all_gather_object(found, value, group=self._group(torch.device("cpu")))
        return found

    def _group(self, device: torch.device) -> dist.ProcessGroup | None:
        """The default group, or for host tensors beside NCCL a gloo group."""
        global _host_group
        if device.type != "cpu" or dist.get_backend() == "gloo":
            return None
        if _host_group is None:
            _host_group = dist.new_group(backend="gloo")
        return _host_group


def _rendezvous() -> tuple[dist.Store, int, int]:
    """(store, rank, processes) of the launch.

    torchrun keeps its store over restarts, and with it the addresses of processes that died: on one node each
    attempt gets keys of its own. On several nodes restart counts may differ, so the store is taken as it is.
    """
    store, rank, size = next(iter(dist.rendezvous("env://")))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT")
    if attempt is not None and os.environ.get("GROUP_WORLD_SIZE") == "1":
        store = dist.PrefixStore(f"attempt_{attempt}", store)
    return store, rank, size


def _destroy_process_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


class ZeroGradForUnusedChannels(nn.Module):
    """Wrapper that gives a zero gradient to the parameters of channels that a batch does not show.

    DDP and FSDP wait for the gradient of every parameter on every rank; a channel that a rank did not see would
    keep them waiting. An empty slice adds exactly nothing to the loss and a zero to the gradient.
    """

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, batch: PlaneBatch, noise: torch.Tensor, **options: object) -> dict[str, torch.Tensor]:
        losses = self.model(batch, noise, **options)
        shown = set(batch.names_K)
        absent = [ps for name, ps in channel_parameters(self.model).items() if name not in shown]
        slices = [p[:0].sum() for ps in absent for p in ps if p.requires_grad]
        if torch.is_grad_enabled() and slices:
            total = losses["total"]
            losses = losses | {"total": total + torch.stack(slices).sum().to(total.dtype)}
        return losses


def channel_parameters(model: Model) -> dict[str, list[nn.Parameter]]:
    """Parameters that only planes of one channel reach, by channel name; none for models without such."""
    decoder = getattr(model, "decoder", None)
    parts = [getattr(decoder, name, ()) for name in ("stacks", "cross", "heads")]
    channels = tuple(getattr(model.config, "channels", ()))
    if decoder is None or len(getattr(decoder, "stacks", ())) != len(channels):
        return {}
    return {
        name: [p for part in parts if len(part) == len(channels) > 1 for p in part[i].parameters()]
        for i, name in enumerate(channels)
    }


class ParallelModel:
    """Data-parallel model: a copy in every process (DDP), or one sharded among them (FSDP2).

    net: what is called for the loss; the model itself in a world of one process.
    """

    def __init__(self, model: Model, world: World, parallel: str, bf16: bool):
        self.model, self.world = model, world
        self.sharded = parallel == "fsdp"
        if self.sharded and not dist.is_initialized():
            raise CamaeError("parallel='fsdp' shares one model among processes: launch with torchrun")
        self.net: nn.Module = model
        self._fsdp: FSDPModule | None = None
        self._ddp: DistributedDataParallel | None = None
        if self.sharded:
            wrapped = ZeroGradForUnusedChannels(model)
            self.net, self._fsdp = wrapped, _fully_shard(wrapped, world, bf16)
        elif world.size > 1:
            self._ddp = DistributedDataParallel(
                ZeroGradForUnusedChannels(model), gradient_as_bucket_view=True
            )
            self.net = self._ddp
        self.of_channels = channel_parameters(model)

    def gradient_sync(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Context of a pass's forward and backward: gradients are reduced over ranks in the step's last one only."""
        if self._fsdp is not None:
            self._fsdp.set_requires_gradient_sync(last)
        elif self._ddp is not None and not last:
            return self._ddp.no_sync()
        return contextlib.nullcontext()

    def drop_unused_grads(self, seen: list[bool]) -> None:
        """Channels that no rank saw in this step keep their parameters as they are, as in one process."""
        for present, parameters in zip(seen, self.of_channels.values(), strict=True):
            if not present:
                for parameter in parameters:
                    parameter.grad = None


def _fully_shard(net: ZeroGradForUnusedChannels, world: World, bf16: bool) -> FSDPModule:
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
    for block in getattr(net.model.encoder, "blocks", ()):
        block.adds_update = True  # LayerScale is freed when the block ends
        fully_shard(block, mesh=mesh, mp_policy=policy)
    return fully_shard(net, mesh=mesh, mp_policy=policy, reshard_after_forward=False)


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds only parts of the parameters."""
    return any(isinstance(p, DTensor) for p in model.parameters())


def whole_model(model: Model) -> Model:
    """The model itself, or of a sharded one a copy on the host with all of its weights (all ranks must call)."""
    if not is_sharded(model):
        return model
    weights = {
        n: (t.full_tensor() if isinstance(t, DTensor) else t).detach().cpu()
        for n, t in without_heads(model.state_dict()).items()
    }
    copy = registry.from_config(model.config)
    copy.load_state_dict(weights)
    return copy


def load_whole(model: nn.Module, weights: Tensors) -> None:
    """Load full weights into a model, sharded or not."""
    if not is_sharded(model):
        model.load_state_dict(weights)
        return
    with torch.no_grad():
        for name, target in model.state_dict().items():
            target.copy_(placed_like(target, weights[name]))


def placed_like(target: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """`value` on the target's device and, where the target is sharded, sharded as it is."""
    value = value.to(target.device)
    if isinstance(target, DTensor) and value.shape == target.shape:
        return distribute_tensor(value, target.device_mesh, target.placements)
    return value
