"""Encoders accelerated for inference. Explicit: `embed` never does this by itself.

Weights are packed once; LayerScale is multiplied into the output projections; norms, GELU and residual sums happen
inside the products where the back-end can (in float32 on a CPU a block is two C++ ops), and on a GPU in the elementwise
kernels between them; the token stream and the norms stay float32. Only the blocks are replaced: regions, layers,
pooling and packing of passes work as before.
"""

from __future__ import annotations

import copy
from dataclasses import replace

from camae.errors import CamaeError
from camae.inference.inference_block import InferenceBlock
from camae.inference.inference_linear import KINDS
from camae.model.blocks import ParallelBlock, SequentialBlock
from camae.model.ca_mae import CAMAE


def accelerate(model: CAMAE, linear: str = "float32", *, compile: bool = False) -> CAMAE:
    """Accelerate a model for inference: a copy with packed encoder blocks, on the model's device.

    The original is left as it is; the decoders are shared with it. Embeddings have the shapes of the original's,
    (D,) or (C, D) float32, and another model hash, so that screens never mix the two.

    linear: "float32" (same vectors up to rounding) or "bfloat16".
    compile: fuse the elementwise operations of each block with torch.compile. It pays where passes have few different
        sizes, as those of a screen do; each new size is compiled once.

    Raises CamaeError for another model than a CA-MAE, an accelerated one and an unknown `linear`, MissingBackendError
    where the device lacks what `linear` needs.
    """
    if not isinstance(model, CAMAE):
        raise CamaeError(f"accelerate takes a CA-MAE, not a {type(model).__name__}")
    if linear not in KINDS:
        raise CamaeError(f"linear={linear!r}: choose from {', '.join(KINDS)}")
    if any(isinstance(block, InferenceBlock) for block in model.encoder.blocks):
        raise CamaeError(
            f"{model.config.name} is an accelerated model already; accelerate the one it came from"
        )
    fast = copy.deepcopy(model, {id(model.decoder): model.decoder}).eval()
    fast.encoder.requires_grad_(False)
    form = f"{linear}, compiled" if compile else linear
    fast.config = replace(model.config, name=f"{model.config.name} ({form})")
    for i, block in enumerate(fast.encoder.blocks):
        assert isinstance(block, (ParallelBlock, SequentialBlock))
        packed = InferenceBlock(block, linear, packed=not compile).eval()
        if compile:
            packed.compile()
        fast.encoder.blocks[i] = packed
    return fast
