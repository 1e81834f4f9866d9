"""Types shared by autograd functions and registered backward passes."""

from __future__ import annotations

from typing import Any, Protocol

import torch

Maybe = torch.Tensor | None
Gradients = tuple[Maybe, ...]
Inputs = tuple[Any, ...]  # an op's arguments: tensors, numbers, dtypes, None


class Context(Protocol):
    """Autograd context: what a forward pass leaves for its backward pass.

    Tensors go through `save_for_backward`, everything else into attributes of any name.
    """

    saved_tensors: tuple[Any, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Maybe) -> None:
        """Tensors (or None) that come back as `saved_tensors`."""

    def mark_non_differentiable(self, *tensors: torch.Tensor) -> None:
        """Outputs that get no gradient."""

    def set_materialize_grads(self, value: bool) -> None:
        """Whether absent gradients of outputs come as zeros (True) or as None (False)."""

    def __getattr__(self, name: str) -> Any: ...
    def __setattr__(self, name: str, value: object) -> None: ...
