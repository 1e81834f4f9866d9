"""Back-end dispatch: the table of every op's back-ends and defaults, and the one place where a back-end is chosen.

An op calls `choose` once and gets a name. "reference" is the op's plain-torch function. "triton" is its `KernelOp`: the
Triton launcher on CUDA and in Triton's interpreter, the op's formula elsewhere (for tests of the registered gradients
without a GPU).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch

from camae.errors import CamaeError, MissingBackendError
from camae.kernels import _cpu


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


Availability = Callable[[torch.device], Backend]
# Back-end by device, dtype and size (`USUAL_SIZES`).
DefaultRule = Callable[[torch.device, torch.dtype, int], str]


@dataclass(frozen=True)
class OpEntry:
    """Row of the dispatch table: an op's back-ends in the order they are listed, and its default."""

    backends: tuple[Availability, ...]
    default: DefaultRule


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the parent of a dotted name is absent
        return False


# Looked up at import: torch.compile traces the choice of a back-end, and cannot trace the search for a module.
_INSTALLED = {
    name: _is_installed(name)
    for name in (
        "torch",
        "triton",
        "torch.nn.attention.varlen",
        "flash_attn",
        "flash_attn_interface",
        "flash_attn.cute",
    )
}


def has_module(name: str) -> bool:
    """Whether an optional package of a back-end is installed, without importing it."""
    return _INSTALLED[name]


@cache
def interpreting() -> bool:
    """Whether Triton kernels run in Triton's interpreter, on CPU tensors: TRITON_INTERPRET=1, read once."""
    if not os.environ.get("TRITON_INTERPRET") or not has_module("triton"):
        return False
    from triton import knobs

    return bool(knobs.runtime.interpret)


def reference_backend(device: torch.device) -> Backend:
    """Plain torch: always there."""
    return Backend("reference", True, "plain torch, any device and dtype")


def triton_backend(device: torch.device) -> Backend:
    """Our Triton kernels: on CUDA, or on any device in Triton's interpreter."""
    if not has_module("triton"):
        return Backend("triton", False, "the package triton is not installed")
    if interpreting():
        return Backend(
            "triton", True, "kernels in Triton's interpreter (TRITON_INTERPRET=1): slow, for tests"
        )
    if device.type != "cuda":
        return Backend("triton", False, f"Triton kernels need a CUDA device, not {device.type}")
    return Backend("triton", True, "our Triton kernels")


def triton_atomic_backend(device: torch.device) -> Backend:
    """Our Triton kernels of attention with a backward pass of 5 products; never a default."""
    found = triton_backend(device)
    why = "our Triton kernels, backward pass with atomics" if found.usable else found.why
    return Backend("triton_atomic", found.usable, why)


def native_backend(device: torch.device) -> Backend:
    """Our C++ kernels: on a CPU that has one of their instruction sets."""
    if device.type != "cpu":
        return Backend("native", False, "our C++ kernel is for CPUs")
    if not _cpu.instructions():
        return Backend("native", False, _cpu.MISSING)
    return Backend("native", True, f"our C++ kernel ({_cpu.instructions()[0]}), float32")


def native_block_backend(device: torch.device) -> Backend:
    """Our C++ block: as `native_backend`, and in bfloat16 where its kernels are the fastest here."""
    backend = native_backend(device)
    if not backend.usable:
        return backend
    low = _cpu.instructions("bfloat16")
    if _cpu.has_tiles():
        why = "bfloat16 by torch's products and SDPA, which have this processor's AMX"
    else:
        why = f"{low[0]} in bfloat16" if low else "bfloat16 by torch's products"
    return replace(backend, why=f"our C++ block ({_cpu.instructions()[0]} in float32; {why})")


def _cuda_package(name: str, module: str, what: str) -> Availability:
    """A kernel of another package, CUDA only."""

    def available(device: torch.device) -> Backend:
        if not has_module(module):
            return Backend(name, False, f"{module} is not installed")
        if device.type != "cuda":
            return Backend(name, False, f"{what} needs a CUDA device")
        return Backend(name, True, what)

    return available


def _triton_on_cuda(device: torch.device, dtype: torch.dtype, size: int) -> str:
    """Kernels on CUDA, plain torch elsewhere. The interpreter is never a default: it is for tests."""
    return "triton" if device.type == "cuda" else "reference"


KERNEL_PATCHES = (8, 16)  # pixels; of the kernels of tokens and of the loss, whose tiles are whole patches


def _by_patch(device: torch.device, dtype: torch.dtype, patch: int) -> str:
    """Kernels on CUDA for the patches that they have, plain torch elsewhere."""
    return _triton_on_cuda(device, dtype, patch) if patch in KERNEL_PATCHES else "reference"


def check_patch(op: str, name: str, patch: int) -> None:
    """Raise CamaeError where the kernels were named and lack the patch."""
    if name == "triton" and patch not in KERNEL_PATCHES:
        known = " and ".join(map(str, KERNEL_PATCHES))
        raise CamaeError(f"{op}: the kernel has patches of {known} px, not {patch}; use backend='reference'")


def _native_on_cpu(device: torch.device, dtype: torch.dtype, size: int) -> str:
    """The C++ block on CPUs that have its instructions, block by layers elsewhere."""
    return "native" if native_backend(device).usable else "reference"


@dataclass(frozen=True)
class Preference:
    """Row of the preferences of attention: the order of back-ends for a kind of input, and the reason.

    dtypes, head_dims: of the inputs; an empty tuple is any. The first usable back-end of `order` is the default.
    """

    device: str
    dtypes: tuple[torch.dtype, ...]
    head_dims: tuple[int, ...]
    order: tuple[str, ...]
    why: str

    def fits(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
        """Whether the row is about these inputs."""
        return (
            self.device == device.type
            and (not self.dtypes or dtype in self.dtypes)
            and (not self.head_dims or head_dim in self.head_dims)
        )


KERNEL_HEAD_DIMS = (16, 32, 64, 128)
PACKAGE_HEAD_DIMS = tuple(range(8, 257, 8))  # of FlashAttention and of cuDNN
_LOW = (torch.bfloat16, torch.float16)
_PACKAGES = ("flash_attn_4", "flash_attn_3", "flash_attn", "torch_varlen", "cudnn", "reference")
# The first row that fits decides.
ATTENTION_PREFERENCES = (
    Preference(
        "cuda",
        _LOW,
        KERNEL_HEAD_DIMS,
        ("triton", *_PACKAGES),
        "q/k norms inside the kernel: before another one they are a pass of their own over q and k, 58 bytes a value",
    ),
    Preference(
        "cuda",
        _LOW,
        PACKAGE_HEAD_DIMS,
        _PACKAGES,
        "our kernels have head dims 16, 32, 64 and 128; the newest FlashAttention first",
    ),
    Preference(
        "cuda",
        (),
        (),
        ("reference",),
        "the kernels take bf16 and fp16, and head dims that are multiples of 8 up to 256",
    ),
    Preference(
        "cpu",
        (torch.float32,),
        tuple(range(_cpu.WIDTH_STEP, 1025, _cpu.WIDTH_STEP)),
        ("native", "reference"),
        "our C++ kernel, faster than SDPA on the CPUs measured",
    ),
    Preference(
        "cpu",
        _LOW,
        tuple(range(_cpu.WIDTH_STEP, 1025, _cpu.WIDTH_STEP)),
        ("native", "reference"),
        "our C++ kernel in float32: SDPA in 16 bits is slower, its backward pass on short sequences 4 times",
    ),
)


def attention_preference(device: torch.device, dtype: torch.dtype, head_dim: int) -> Preference | None:
    """The first row of `ATTENTION_PREFERENCES` that fits; None where plain torch is all there is."""
    fitting = (row for row in ATTENTION_PREFERENCES if row.fits(device, dtype, head_dim))
    return next(fitting, None)


def _default_attention(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """The first usable back-end of the row that fits."""
    row = attention_preference(device, dtype, head_dim)
    # SDPA has AMX in its forward pass: twice as fast in bfloat16 as any float32 (measured on a Xeon).
    tiles = device.type == "cpu" and dtype in _LOW and _cpu.has_tiles() and not torch.is_grad_enabled()
    if row is None or tiles:
        return "reference"
    usable = {backend.name for backend in backends_of("varlen_attention", device) if backend.usable}
    return next((name for name in row.order if name in usable), "reference")


_TRITON_OP = OpEntry((triton_backend, reference_backend), _triton_on_cuda)
_OF_PATCHES = OpEntry((triton_backend, reference_backend), _by_patch)
_ATTENTION = OpEntry(
    (
        triton_backend,
        triton_atomic_backend,
        _cuda_package("torch_varlen", "torch.nn.attention.varlen", "torch's FlashAttention-2"),
        _cuda_package("flash_attn", "flash_attn", "the package flash-attn (FA2)"),
        _cuda_package("flash_attn_3", "flash_attn_interface", "FlashAttention-3 of the package flash-attn"),
        _cuda_package("flash_attn_4", "flash_attn.cute", "the package flash-attn-4 (CuTe)"),
        _cuda_package("cudnn", "torch", "cuDNN's attention through SDPA"),
        native_backend,
        reference_backend,
    ),
    _default_attention,
)
# The order is that of `camae doctor`.
TABLE: dict[str, OpEntry] = {
    "tokenize": _OF_PATCHES,
    "plane_statistics": _TRITON_OP,
    "reconstruction_loss": _OF_PATCHES,
    "varlen_attention": _ATTENTION,
    "residual_norm": _TRITON_OP,
    "gelu_split": _TRITON_OP,
    "lion": _TRITON_OP,
    "transformer_block": OpEntry((native_block_backend, reference_backend), _native_on_cpu),
}


def backends_of(op: str, device: torch.device | str) -> tuple[Backend, ...]:
    """The op's back-ends and whether each can run on `device`."""
    device = torch.device(device)
    return tuple(available(device) for available in TABLE[op].backends)


# The size that a default depends on, of every preset: attention's head dim, the side of patches.
USUAL_SIZES = {"varlen_attention": 64, "tokenize": 16, "reconstruction_loss": 16}


def default_backend(
    op: str, device: torch.device | str, dtype: torch.dtype | None = None, size: int | None = None
) -> str:
    """The name of the back-end where none is asked for.

    dtype: None: bf16 on CUDA, fp32 elsewhere. size: as `USUAL_SIZES`, which None takes.
    """
    device = torch.device(device)
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return TABLE[op].default(device, dtype, USUAL_SIZES.get(op, 0) if size is None else size)


def choose(
    op: str,
    requested: str | None,
    device: torch.device,
    dtype: torch.dtype | None = None,
    size: int | None = None,
) -> str:
    """The name of the back-end to run: `requested`, or the op's default (`default_backend`) where none was named.

    Raises CamaeError for a name the op does not know, MissingBackendError for one that cannot run here.
    """
    by_name = {b.name: b for b in backends_of(op, device)}
    name = requested or default_backend(op, device, dtype, size)
    if name not in by_name:
        raise CamaeError(f"{op} has no back-end {name!r}; it has {', '.join(by_name)}")
    if not by_name[name].usable:
        usable = ", ".join(b.name for b in by_name.values() if b.usable)
        raise MissingBackendError(
            f"{op}: back-end {name!r} cannot run here ({by_name[name].why}); usable: {usable}"
        )
    return name
