"""Kernel launch: argument checks, device guard and observers, the one place where a Triton kernel starts.

A tensor argument `x` may be strided where its kernel also takes `x_row`: then only its last dim must be contiguous.
Every other tensor must be contiguous. Kernels compute offsets of rows in int64, so that a tensor may have any size;
integers that they take as arguments are int32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch

from camae.errors import CamaeError

INT32_LIMIT = 2**31 - 1
GRID_LIMIT = (2**31 - 1, 65_535, 65_535)
OPTIONS = ("num_warps", "num_stages")
Grid = tuple[int, ...]


class Kernel(Protocol):
    """A function under @triton.jit."""

    @property
    def arg_names(self) -> list[str]:
        """Names of the arguments in order."""

    def __getitem__(self, grid: Grid) -> Callable[..., object]:
        """The launcher for a grid."""


@dataclass(frozen=True)
class Launch:
    """Launch of a kernel.

    arguments: run-time arguments by name: tensors, None for an absent one, int, float.
    constants: compile-time arguments by name.
    options:   num_warps and num_stages, where given.
    """

    kernel: Kernel
    grid: Grid
    arguments: Mapping[str, object]
    constants: Mapping[str, object]
    options: Mapping[str, object]


Observer = Callable[[Launch], bool]
# Each is called with every launch, after the checks; where one returns True the kernel is not started.
observers: list[Observer] = []


def launch(kernel: Kernel, grid: Grid, *arguments: object, **constants_and_options: object) -> None:
    """Start `kernel` on the device of its tensors.

    grid:      programs by dimension.
    arguments: run-time arguments in the kernel's order.
    constants_and_options: compile-time arguments, num_warps, num_stages.

    Raises CamaeError for tensors on different devices, a tensor that must be contiguous and is not, an integer
    beyond int32, and a grid beyond the device's limits. An empty grid starts nothing.
    """
    names = kernel.arg_names
    device = _checked(kernel, names, grid, arguments)
    if 0 in grid:
        return
    if observers:
        given = constants_and_options
        constants = {name: value for name, value in given.items() if name not in OPTIONS}
        options = {name: value for name, value in given.items() if name in OPTIONS}
        by_name = dict(zip(names, arguments, strict=False))
        event = Launch(kernel, grid, by_name, constants, options)
        stopped = [observe(event) for observe in observers]  # a list: every observer sees every launch
        if any(stopped):
            return
    with device_guard(device):
        kernel[grid](*arguments, **constants_and_options)


def device_guard(device: torch.device) -> AbstractContextManager[object]:
    """Makes a CUDA device the current one: Triton launches there, whatever device the pointers belong to."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _checked(kernel: Kernel, names: list[str], grid: Grid, arguments: tuple[object, ...]) -> torch.device:
    """The device of all tensors among the arguments."""
    device: torch.device | None = None
    for name, value in zip(names, arguments, strict=False):
        if isinstance(value, torch.Tensor):
            if device is None:
                device = value.device
            elif value.device != device:
                raise _error(kernel, f"{name} is on {value.device}, the tensors before it on {device}")
            if not value.is_contiguous():
                _check_strides(kernel, names, name, value)
        elif isinstance(value, int) and not -INT32_LIMIT <= value <= INT32_LIMIT:
            raise _error(kernel, f"{name} = {value} is beyond int32; split the batch")
    if device is None:
        raise _error(kernel, "no argument is a tensor")
    for size, limit in zip(grid, GRID_LIMIT, strict=False):
        if not 0 <= size <= limit:
            raise _error(kernel, f"a grid of {grid} programs is beyond {GRID_LIMIT}; split the batch")
    return device


def _check_strides(kernel: Kernel, names: list[str], name: str, value: torch.Tensor) -> None:
    if f"{name}_row" not in names:
        raise _error(kernel, f"{name} has strides {value.stride()} and must be contiguous")
    if value.shape[-1] > 1 and value.stride(-1) != 1:
        raise _error(kernel, f"{name} has strides {value.stride()}, its last must be 1")


def _error(kernel: Kernel, what: str) -> CamaeError:
    return CamaeError(f"{getattr(kernel, '__name__', 'kernel')}: {what}")
