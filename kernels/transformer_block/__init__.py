"""transformer_block: a ViT block for inference in two fused ops on a CPU (`native`). Not differentiable.

`self_attention_op` is attention of LayerNorm(x) W^T + b, (T, D) to (T, D); `block_tail_op` is
y = x + attended Wp^T + bp, then y + gelu(LayerNorm(y or x) W1^T + b1) W2^T + b2. Weights are packed once
(`pack_weight`), for an instruction set whose products are of float32 or bfloat16. Norms, biases, GELU and residuals
happen while the rows are in the cache; q, k, v and the hidden values of the MLP are never written to memory. A
sequence's numbers do not depend on what else is in the batch nor on the number of threads. `reference`: no such op, the
block runs layer by layer. Floor: 24 T D^2 + 4 T^2 D FLOPs for MLPs of four widths; tokens read and written twice.
"""

from __future__ import annotations

import torch

from camae.kernels import _dispatch
from camae.kernels._cpu import instructions
from camae.kernels.transformer_block.cpu import block_tail_op, fits, pack_weight, self_attention_op

__all__ = ["backends", "block_tail_op", "fits", "instructions", "pack_weight", "self_attention_op"]


def backends(device: torch.device | str = "cpu") -> tuple[_dispatch.Backend, ...]:
    """The op's back-ends and whether each can run on `device`."""
    return _dispatch.backends_of("transformer_block", device)
