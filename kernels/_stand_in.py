"""Stand-ins for CUDA tensors: shapes, dtypes and strides without values, for runs of whole flows without a GPU.

Under `stand_ins`, tensors made on or moved to the device "cuda:0" are fake tensors of torch with the dispatch keys of
CUDA (so that autograd and CUDA's autocast treat them as on a card), and ops of this package run their launchers.
Tensors on the host stay real. A process that has used it keeps the changes of torch that are undone at the end alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import torch
import torch._dynamo  # before the changes below: it compares signatures of what they replace
from torch._library.custom_ops import OPDEFS
from torch._ops import OpOverload
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda:0")
CAPABILITY = {"sm_80": (8, 0), "sm_90": (9, 0)}
MULTIPROCESSORS = {"sm_80": 108, "sm_90": 132}
MEMORY = 80 * 10**9  # bytes, of the smallest A100 and H100 in data centers
_READ = torch.ops.aten._local_scalar_dense.default
_ALIGNMENT = 512  # of what CUDA's allocator of torch returns, bytes


@dataclass
class Traffic:
    """Copies between host and device.

    to_device: bytes of every copy to the device from pageable memory. reads: bytes of every copy or scalar that the
    host took from the device, each of which waits for it. waits: ops that stop the host until the device has a copy of
    host memory: copies without non_blocking, and a number put at indices. pinned: page-locked tensors, by the address
    of their storage.
    """

    to_device: list[int] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    pinned: dict[int, torch.Tensor] = field(default_factory=dict, repr=False)

    def pin(self, x: torch.Tensor, *_: object) -> torch.Tensor:
        """The tensor itself, page-locked from here on."""
        self.pinned[x.untyped_storage().data_ptr()] = x
        return x

    def copied(self, x: torch.Tensor) -> None:
        """Note a copy to the device."""
        if x.untyped_storage().data_ptr() not in self.pinned:
            self.to_device.append(x.nbytes)


class _StandInMode(TorchDispatchMode):
    """Sends every op with a tensor on the device to fake tensors, and ops of this package to their launchers."""

    def __init__(self, traffic: Traffic):
        super().__init__()
        self.traffic = traffic
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        options = dict(kwargs or {})
        device = options.get("device")
        # C++ takes a stand-in to be on the meta device, where it needs no driver.
        on_device = isinstance(device, torch.device) and device.type in ("cuda", "meta")
        inputs = [x for x in tree_leaves((args, options)) if isinstance(x, torch.Tensor)]
        if on_device and (cast(torch.device, device).type == "cuda" or self._any_fake(inputs)):
            options["device"] = CUDA
        elif not self._any_fake(inputs):
            return func(*args, **options)
        if func.namespace == "camae":
            launcher = OPDEFS[func._schema.name]._backend_fns["cuda"]
            with self:
                return launcher(*args, **options)
        if func is _READ:
            return self._scalar(cast(torch.Tensor, args[0]))
        return self._run(func, args, options)

    @staticmethod
    def _any_fake(inputs: Sequence[torch.Tensor]) -> bool:
        return any(isinstance(x, FakeTensor) for x in inputs)

    def _waits(self, func: OpOverload, args: tuple[object, ...], options: Mapping[str, object]) -> bool:
        """Whether the host waits for an op that takes a tensor or a number of its own."""
        name = func._schema.name.removeprefix("aten::")
        if "index_put" in name:  # x[indices] = number: the number is copied to the device
            return cast(torch.Tensor, args[2]).ndim == 0
        inputs = [x for x in tree_leaves((args, dict(options))) if isinstance(x, torch.Tensor)]
        if name not in ("copy_", "_to_copy") or all(isinstance(x, FakeTensor) or x.is_meta for x in inputs):
            return False
        return not (name == "copy_" and len(args) > 2 and args[2]) and not options.get("non_blocking")

    def _scalar(self, x: torch.Tensor) -> bool | int | float:
        """1, True or 1.0 for a value that cannot be known."""
        self.traffic.reads.append(x.element_size())
        if x.dtype == torch.bool:
            return True
        return 1.0 if x.is_floating_point() else 1

    def _run(self, func: OpOverload, args: tuple[object, ...], options: dict[str, object]) -> object:
        def as_fake(x: object) -> object:
            if not isinstance(x, torch.Tensor) or isinstance(x, FakeTensor):
                return x
            if x.is_meta:  # made by C++ for a stand-in that it takes to be there
                with self.fake:
                    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=CUDA)
            if x.ndim:
                self.traffic.copied(x)
            return self.fake.from_tensor(x)

        if self._waits(func, args, options):
            self.traffic.waits.append(str(func))
        args, options = tree_map(as_fake, (args, options))
        with self.fake:
            result = func(*args, **options)
        if isinstance(result, torch.Tensor) and result.device.type == "cpu":
            self.traffic.reads.append(result.nbytes)
            return torch.zeros(result.shape, dtype=result.dtype)
        return result


def _without_driver(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`Tensor._make_subclass` that lets only Python see the device of a fake tensor."""

    def make_subclass(cls: type, data: torch.Tensor, requires_grad: bool = False, **kwargs: Any) -> Any:
        if cls is FakeTensor:
            kwargs["dispatch_device"] = False
        return make(cls, data, requires_grad, **kwargs)

    return make_subclass


def _address(x: torch.Tensor) -> int:
    """Address of a tensor: of a stand-in what its offset makes of an aligned one."""
    if isinstance(x, FakeTensor):
        return _ALIGNMENT + int(x.storage_offset()) * x.element_size()
    return torch._C.TensorBase.data_ptr(x)


def _replaced(arch: str, traffic: Traffic) -> list[tuple[object, dict[str, object]]]:
    """What is replaced while stand-ins exist: owner, and value by name."""
    properties = SimpleNamespace(
        multi_processor_count=MULTIPROCESSORS[arch], total_memory=MEMORY, name=f"stand-in {arch}"
    )

    empty = torch.empty

    def empty_or_pinned(*size: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        made = empty(*size, **options)
        return traffic.pin(made) if pin_memory else made

    def nothing(*_: object, **__: object) -> None:
        return None

    cuda: dict[str, object] = {
        "_lazy_init": nothing,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "is_bf16_supported": lambda *_, **__: True,
        "get_device_capability": lambda *_: CAPABILITY[arch],
        "get_device_properties": lambda *_: properties,
        "get_device_name": lambda *_: properties.name,
        "mem_get_info": lambda *_: (MEMORY, MEMORY),
        "max_memory_allocated": lambda *_: 0,
        "reset_peak_memory_stats": nothing,
        "synchronize": nothing,
        "set_device": nothing,
        "is_current_stream_capturing": lambda: False,  # torch up to 2.11 asks a driver
    }
    tensor = {
        "_make_subclass": staticmethod(_without_driver(torch.Tensor._make_subclass)),
        "data_ptr": _address,
        "is_cuda": property(lambda x: x.device.type == "cuda"),
        "pin_memory": lambda x, *_: traffic.pin(x),
    }
    return [
        (torch, {"empty": empty_or_pinned}),
        (torch.cuda, cuda),
        (torch.Tensor, tensor),
        (fake_tensor, {"init_gpu_context": nothing}),
        (torch.cuda.amp.common, {"amp_definitely_not_available": lambda: False}),
    ]


@contextmanager
def stand_ins(arch: str) -> Iterator[Traffic]:
    """Makes "cuda:0" a device of stand-ins that says it is an `arch`; yields the copies that are counted.

    arch: "sm_80" or "sm_90".
    """
    traffic = Traffic()
    _device_constructors()  # a cached set of functions: with torch.empty itself, not with what replaces it
    with ExitStack() as stack:
        mode = _StandInMode(traffic)
        for owner, names in _replaced(arch, traffic):
            for name, value in names.items():
                stack.enter_context(mock.patch.object(owner, name, value))
        # torch.tensor(..., device=) makes its tensor on the host first, and moves it by an op that the mode sees.
        stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)
        stack.enter_context(mode)
        yield traffic
