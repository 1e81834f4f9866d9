"""Torch tensors for functions of NumPy and CuPy arrays: taken and given back without a copy, never importing torch.

A tensor on a CPU shares its memory with a NumPy array, one on a CUDA device with a CuPy array (DLPack). CuPy then
works on the tensor's device and on torch's current stream, so that neither library waits for the other and memory that
one frees is not reused under the other.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np

from camae.errors import CamaeError, MissingBackendError

P = ParamSpec("P")
R = TypeVar("R")


def takes_tensors(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: tensors among the arguments become arrays, and results are of the kind of the first argument.

    Arguments may be tensors or sequences of tensors; fp16 and the like pass as they are, bf16 becomes fp32. A result
    (or an item of a tuple) that is a floating-point array becomes a tensor on the same device where the first argument
    (after `self`) is a tensor. Gradients do not pass.
    Raises CamaeError for tensors on several CUDA devices, or that are neither dense nor on a CPU or CUDA device;
    MissingBackendError for CUDA tensors where CuPy is not installed.
    """
    parameters = list(inspect.signature(function).parameters)
    place = int(parameters[0] == "self")
    first = parameters[place]

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        tensors = list(_tensors([*args, *kwargs.values()]))
        if not tensors:
            return function(*args, **kwargs)
        given = args[place] if len(args) > place else kwargs.get(first)
        with _on_device_of(tensors):
            arrays = {name: _as_arrays(value) for name, value in kwargs.items()}
            # Types of arguments cannot follow the conversion: arrays stand where tensors stood.
            out = cast(Callable[..., R], function)(*map(_as_arrays, args), **arrays)
            return cast(R, _as_tensors(out)) if is_tensor(given) else out

    return call


def is_tensor(x: object) -> bool:
    """Whether `x` is a torch tensor."""
    torch = sys.modules.get("torch")  # whoever has a tensor has imported it
    return torch is not None and isinstance(x, torch.Tensor)


def _of_arrays(value: object) -> bool:
    """Whether `value` is a sequence of arrays, by its first item: labels and pairs are long and hold none."""
    return isinstance(value, list | tuple) and len(value) > 0 and hasattr(value[0], "__dlpack__")


def _tensors(values: Iterable[object]) -> Iterable[Any]:
    for value in values:
        if is_tensor(value):
            yield value
        elif _of_arrays(value):
            yield from filter(is_tensor, cast(Iterable[object], value))


def _as_arrays(value: object) -> object:
    if is_tensor(value):
        return from_tensor(value)
    if _of_arrays(value):
        return [from_tensor(item) if is_tensor(item) else item for item in cast(Iterable[object], value)]
    return value


def _as_tensors(out: object) -> object:
    if isinstance(out, tuple):
        return tuple(map(_as_tensors, out))
    if not hasattr(out, "__dlpack__") or cast(Any, out).dtype.kind != "f":
        return out
    torch = sys.modules["torch"]
    return torch.from_numpy(out) if isinstance(out, np.ndarray) else torch.from_dlpack(out)


def from_tensor(tensor: Any) -> np.ndarray:  # torch is not imported here, so its type has no name
    """The tensor's memory as a NumPy array (CPU) or as a CuPy array (CUDA); bf16 is copied to fp32.

    Raises as `takes_tensors`.
    """
    torch, kind = sys.modules["torch"], tensor.device.type
    if tensor.layout != torch.strided or kind not in ("cpu", "cuda"):
        layout = "" if tensor.layout == torch.strided else "a sparse tensor "
        raise CamaeError(
            f"a tensor is {layout}on the device {tensor.device}; give a dense tensor on a CPU or a CUDA device, such "
            "as x.to_dense().cpu()"
        )
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:  # NumPy has no such type
        tensor = tensor.float()
    return cast(np.ndarray, tensor.numpy() if kind == "cpu" else _cupy(tensor).from_dlpack(tensor))


def _cupy(tensor: Any) -> ModuleType:
    try:
        import cupy
    except ImportError:
        raise MissingBackendError(
            f"a tensor is on {tensor.device}, and arrays there need CuPy, which is not installed; pip install "
            "'camae[gpu]', or give x.cpu()"
        ) from None
    return cast(ModuleType, cupy)


@contextlib.contextmanager
def _on_device_of(tensors: list[Any]) -> Iterator[None]:
    """CuPy on the tensors' CUDA device and torch's current stream there; nothing for tensors on a CPU."""
    devices = {tensor.device.index: tensor for tensor in tensors if tensor.device.type == "cuda"}
    if not devices:
        yield
        return
    if len(devices) > 1:
        listed = " and ".join(f"cuda:{index}" for index in sorted(devices))
        raise CamaeError(f"tensors are on {listed}; move them to one device")
    ((index, tensor),) = devices.items()
    cuda = _cupy(tensor).cuda
    stream = sys.modules["torch"].cuda.current_stream(index).cuda_stream
    # 0 is the default stream, which CuPy has as an object of its own.
    with cuda.Device(index), cuda.ExternalStream(stream, index) if stream else cuda.Stream.null:
        yield
