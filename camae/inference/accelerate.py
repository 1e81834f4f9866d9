"""`accelerate`: the same encoder, rewritten for inference. Explicit: `embed` never does this by itself.

What changes, all of it algebra: weights are packed once; LayerScale is multiplied into the output projections;
norms, GELU and residual sums happen inside the products where the back-end can (in float32 on a CPU a block is two
C++ ops); the token stream and the norms stay float32. Region mode, layers, pooling and packing work as before,
because only the blocks are replaced.
"""

from __future__ import annotations

import copy
from dataclasses import replace

from camae.errors import CamaeError
from camae.inference.fast_block import FastBlock
from camae.inference.fast_linear import KINDS
from camae.model.ca_mae import CAMAE


def accelerate(model: CAMAE, linear: str = "float32", *, compile: bool = False) -> CAMAE:
    """A copy of `model` for inference on its device; the original is left as it is, and decoders are shared.

    linear: "float32" (same vectors up to rounding), "bfloat16", or "fp8" (CUDA, compute capability 8.9 or later; on a
        CPU an emulation that says what the error is).
    compile: let torch.compile fuse each block's glue; on a GPU with CUDA graphs. Pays where passes have few
        different sizes, as those of a screen do; each new size is compiled once.

    Its embeddings carry another model hash than the original's, so that screens never mix the two.
    Raises CamaeError for other models than CA-MAE, MissingBackendError where the device lacks what `linear` needs.
    """
    if not isinstance(model, CAMAE):
        raise CamaeError(f"accelerate takes a CA-MAE, not a {type(model).__name__}")
    if linear not in KINDS:
        raise CamaeError(f"linear={linear!r}: choose from {', '.join(KINDS)}")
    if any(isinstance(block, FastBlock) for block in model.encoder.blocks):
        raise CamaeError(
            f"{model.config.name} is an accelerated model already; accelerate the one it came from"
        )
    fast = copy.deepcopy(model, {id(model.decoder): model.decoder}).eval()
    fast.encoder.requires_grad_(False)
    fast.config = replace(model.config, name=f"{model.config.name} ({linear}{', compiled' * compile})")
    for i, block in enumerate(fast.encoder.blocks):
        new = FastBlock(block, linear, not compile, model.backends.attention).eval()  # type: ignore[arg-type]
        if compile:
            new.compile(mode="reduce-overhead" if model.device.type == "cuda" else None)
        fast.encoder.blocks[i] = new
    return fast
