"""Back-ends of a model's ops, and the base class of modules that run them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import nn


@dataclass(frozen=True)
class Backends:
    """Names of the back-ends that a model's ops run on; None is an op's default for the device.

    tokenize: of `kernels.tokenize` and the plane statistics. attention: of `kernels.varlen_attention`.
    loss: of `kernels.reconstruction_loss`. elementwise: of `kernels.residual_norm` and `kernels.gelu_split`, "triton"
    or "reference".
    """

    tokenize: str | None = None
    attention: str | None = None
    loss: str | None = None
    elementwise: str | None = None


class BackendModule(nn.Module):
    """Module with back-ends: given to its constructor, and changed by `use_backends` alone."""

    def __init__(self, backends: Backends | None = None):
        super().__init__()
        self.backends = backends or Backends()

    def use_backends(self, backends: Backends) -> Self:
        """Change the back-ends of this module and of every module within it; returns the module itself."""
        for module in self.modules():
            if isinstance(module, BackendModule):
                module.backends = backends
                module.on_backends_changed()
        return self

    def on_backends_changed(self) -> None:
        """Hook for modules that prepare their weights for a back-end."""
