"""lion: the Lion optimizer (Chen et al. 2023, Algorithm 2), decoupled weight decay, clipping in the step.

The optimizer steps in place through tables of addresses, without a torch.library op (no registration.py).
c = b1 m + (1 - b1) g;  p <- p - lr (sign(c) + wd p);  m <- b2 m + (1 - b2) g.
Floor in fp32: read p, g, m and write p, m, 20 bytes per parameter; 22 with fp32 masters, bf16 gradients and bf16
copies (read 4 + 2 + 4, write 4 + 4 + 2, and 2 more for reading the gradient's norm).
"""

from __future__ import annotations

import torch

from camae.kernels import _dispatch
from camae.kernels.lion.optimizer import Lion
from camae.kernels.lion.reference import lion_reference

__all__ = ["Lion", "backends", "lion_reference"]


def backends(device: torch.device | str = "cpu") -> tuple[_dispatch.Backend, ...]:
    """The op's back-ends and whether each can run on `device`."""
    return _dispatch.backends_of("lion", device)
