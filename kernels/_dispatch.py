"""Which back-ends an op has, which are usable here and why not, and the explicit choice between them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache

import torch

from camae.errors import CamaeError, MissingBackendError


@dataclass(frozen=True)
class Backend:
    """One way to run an op.

    name:   what callers pass as `backend=`.
    usable: whether it can run on this machine (for tensors on `device`).
    why:    the reason, for `camae doctor` and for error messages.
    """

    name: str
    usable: bool
    why: str


@cache
def has_module(name: str) -> bool:
    """Whether a module is installed, without importing it (a dotted name imports its parents)."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the parent of a dotted name is absent
        return False


def interpreting() -> bool:
    """Whether Triton kernels run in Triton's interpreter (TRITON_INTERPRET=1), on CPU tensors."""
    if not has_module("triton"):
        return False
    from triton import knobs  # type: ignore[import-not-found]

    return bool(knobs.runtime.interpret)


def reference_backend() -> Backend:
    """Plain torch: always there."""
    return Backend("reference", True, "plain torch, any device and dtype")


def triton_backend(device: torch.device | str) -> Backend:
    """Our Triton kernels: on CUDA, or on any device in Triton's interpreter."""
    if not has_module("triton"):
        return Backend("triton", False, "the package triton is not installed")
    if interpreting():
        return Backend(
            "triton", True, "kernels in Triton's interpreter (TRITON_INTERPRET=1): slow, for tests"
        )
    if torch.device(device).type != "cuda":
        return Backend("triton", False, f"Triton kernels need a CUDA device, not {torch.device(device).type}")
    return Backend("triton", True, "our Triton kernels")


def cuda_package_backend(name: str, module: str, device: torch.device | str, what: str) -> Backend:
    """A kernel of another package, CUDA only."""
    if not has_module(module):
        return Backend(name, False, f"{module} is not installed")
    if torch.device(device).type != "cuda":
        return Backend(name, False, f"{what} needs a CUDA device")
    return Backend(name, True, what)


def architecture(device: torch.device) -> str:
    """The key into a kernel's frozen configurations: sm_80, sm_90 (and newer), or interpreter."""
    if device.type != "cuda":
        return "interpreter"
    return "sm_90" if torch.cuda.get_device_capability(device)[0] >= 9 else "sm_80"


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype autocast asks for on this device, None outside autocast."""
    if device.type not in ("cpu", "cuda") or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def default_backend(device: torch.device | str) -> str:
    """Kernels on CUDA, plain torch elsewhere. The interpreter is never a default: it is for tests."""
    return "triton" if torch.device(device).type == "cuda" else "reference"


def choose(op: str, requested: str | None, backends: tuple[Backend, ...], default: str) -> str:
    """The name of the back-end to run: `requested`, or `default` where none was named.

    Raises CamaeError for a name the op does not know, MissingBackendError for one that cannot run here.
    """
    by_name = {b.name: b for b in backends}
    name = requested or default
    if name not in by_name:
        raise CamaeError(f"{op} has no back-end {name!r}; it has {', '.join(by_name)}")
    if not by_name[name].usable:
        usable = ", ".join(b.name for b in backends if b.usable)
        raise MissingBackendError(
            f"{op}: back-end {name!r} cannot run here ({by_name[name].why}); usable: {usable}"
        )
    return name
