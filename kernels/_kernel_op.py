"""Kernel op: a torch.library op whose Triton launcher is called directly where only autograd looks on.

The library op is what torch.compile, fake tensors and torch.func see; its dispatch costs some 40 microseconds a call
on the host, more than many of the kernels take. In eager mode the launcher runs instead, under the same gradient.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from camae.kernels._autograd import Context, Gradients, Inputs
from camae.kernels._dispatch import interpreting

_PLAIN = (torch.Tensor, torch.nn.Parameter)
SetupContext = Callable[[Context, Inputs, Any], None]
Backward = Callable[..., Gradients]


class KernelOp:
    """Op with a Triton launcher, called as the library op is.

    library_op: the op as registered with torch.library; its formula runs on devices without kernels.
    module, launcher: the function with the op's signature that starts its kernels, imported at the first call; the
        op's kernel for CUDA tensors, and for CPU tensors in Triton's interpreter.
    setup_context, backward: the gradient, as `register_autograd` takes it; an op without one is not differentiable.
    in_place: a launcher of `module` for direct calls, whose results may be columns of one buffer; None: `launcher`.
    """

    def __init__(
        self,
        library_op: torch.library.CustomOpDef,
        module: str,
        launcher: str,
        setup_context: SetupContext | None = None,
        backward: Backward | None = None,
        *,
        in_place: str | None = None,
    ):
        self.library_op = library_op
        self._module, self._direct = module, in_place or launcher

        def registered(*arguments: object) -> object:
            return getattr(importlib.import_module(module), launcher)(*arguments)

        library_op.register_kernel("cuda")(registered)
        if interpreting():
            library_op.register_kernel("cpu")(registered)
        self._function: type[torch.autograd.Function] | None = None
        if setup_context is not None and backward is not None:
            library_op.register_autograd(backward, setup_context=setup_context)
            self._function = _function(self._launch, setup_context, backward)

    def _launch(self, *arguments: object) -> Any:
        return getattr(importlib.import_module(self._module), self._direct)(*arguments)

    def __call__(self, *arguments: Any) -> Any:
        """Results of the op, by its launcher where that can be."""
        if not _launches_here(arguments):
            return self.library_op(*arguments)
        if not torch.is_grad_enabled() or not any(
            isinstance(x, torch.Tensor) and x.requires_grad for x in arguments
        ):
            return self._launch(*arguments)
        if self._function is None:  # which says that there is no gradient, where one is asked for
            return self.library_op(*arguments)
        return self._function.apply(*arguments)


def _launches_here(arguments: tuple[object, ...]) -> bool:
    """Plain tensors on a device with kernels, and no compiler, dispatch mode or function transform at work."""
    if torch.compiler.is_compiling():
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    tensors = [x for x in arguments if isinstance(x, torch.Tensor)]
    return all(type(x) in _PLAIN for x in tensors) and (tensors[0].is_cuda or interpreting())


def _function(
    launch: Callable[..., Any], setup: SetupContext, gradient: Backward
) -> type[torch.autograd.Function]:
    """The autograd function of a launcher."""

    class Launched(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Context, *arguments: object) -> Any:
            results = launch(*arguments)
            setup(ctx, arguments, results)
            return results

        @staticmethod
        def backward(ctx: Context, *grads: torch.Tensor) -> Gradients:
            return gradient(ctx, *grads)

    return Launched
