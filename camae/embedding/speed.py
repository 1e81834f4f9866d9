"""`accelerate`: the same encoder, rewritten for inference. Explicit: `embed` never does this by itself.

What changes, all of it algebra: weights are packed once; LayerScale is multiplied into the output projections;
GELU and residual sums happen inside the products where the back-end can; the token stream and the norms stay
float32. Region mode, layers, pooling and packing work as before, because only the blocks are replaced.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from camae.embedding.fast_linear import KINDS, FastLinear
from camae.errors import CamaeError
from camae.model.blocks import ParallelBlock, Sequences, SequentialBlock, attend
from camae.model.ca_mae import CAMAE


class _FastBlock(nn.Module):
    """A block with packed weights: packed again wherever its own weights are moved to."""

    def __init__(self, block: Any, kind: str, packed: bool):
        super().__init__()
        self.block, self.kind, self.packed = block, kind, packed
        self.pack()

    def pack(self) -> None:
        """Make the linear layers from the block's weights, where these are now."""
        raise TypeError(f"{type(self).__name__} does not say how its weights are packed")

    def linear(self, weight_FD: torch.Tensor, bias_F: torch.Tensor) -> FastLinear:
        """A layer of this block's kind."""
        return FastLinear(weight_FD, bias_F, self.kind, packed=self.packed)

    def _apply(self, fn: Any, recurse: bool = True) -> _FastBlock:
        super()._apply(fn, recurse)
        self.pack()
        return self


class FastParallelBlock(_FastBlock):
    """`ParallelBlock` for inference, same call."""

    def pack(self) -> None:
        """Packed weights, LayerScale multiplied into both output projections."""
        block = self.block
        hidden, gamma_D, bias = block.mlp_bias.numel(), block.gamma.detach(), block.in_bias().detach()
        weight = block.in_proj.weight
        self.mlp_in = self.linear(weight[:hidden], bias[:hidden])
        self.qkv = self.linear(weight[hidden:], bias[hidden:])
        self.mlp_out, self.attention_out = (
            self.linear(gamma_D[:, None] * layer.weight, gamma_D * layer.bias)
            for layer in (block.mlp_out_proj, block.attn_out_proj)
        )

    def forward(self, tokens_TD: torch.Tensor, sequences: Sequences, backend: str | None) -> torch.Tensor:
        block = self.block
        normed_TD = block.in_norm(tokens_TD)
        q, k, v = _for_attention(self.qkv(normed_TD)).chunk(3, dim=1)
        attention_TD = attend(
            *(q, k, v, block.heads, sequences, sequences, backend),
            q_norm=_parameters(block.q_norm, q.dtype),
            k_norm=_parameters(block.k_norm, k.dtype),
            norm_eps=block.q_norm.eps,
        )
        tokens_TD = self.attention_out(attention_TD, add_TF=tokens_TD)
        return self.mlp_out(self.mlp_in(normed_TD, gelu=True), add_TF=tokens_TD)


class FastSequentialBlock(_FastBlock):
    """`SequentialBlock` for inference, same call."""

    def pack(self) -> None:
        """Packed weights."""
        block = self.block
        self.qkv, self.proj, self.fc1, self.fc2 = (
            self.linear(layer.weight, layer.bias) for layer in (block.qkv, block.proj, block.fc1, block.fc2)
        )

    def forward(self, tokens_TD: torch.Tensor, sequences: Sequences, backend: str | None) -> torch.Tensor:
        block = self.block
        q, k, v = _for_attention(self.qkv(block.norm1(tokens_TD))).chunk(3, dim=1)
        attention_TD = attend(q, k, v, block.heads, sequences, sequences, backend)
        tokens_TD = self.proj(attention_TD, add_TF=tokens_TD)
        return self.fc2(self.fc1(block.norm2(tokens_TD), gelu=True), add_TF=tokens_TD)


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
    kinds = {ParallelBlock: FastParallelBlock, SequentialBlock: FastSequentialBlock}
    if any(type(block) not in kinds for block in model.encoder.blocks):
        raise CamaeError(
            f"{model.config.name} is an accelerated model already; accelerate the one it came from"
        )
    fast = copy.deepcopy(model, {id(model.decoder): model.decoder}).eval()
    fast.encoder.requires_grad_(False)
    fast.config = replace(model.config, name=f"{model.config.name} ({linear}{', compiled' * compile})")
    for i, block in enumerate(fast.encoder.blocks):
        new = kinds[type(block)](block, linear, packed=not compile).eval()  # type: ignore[index]
        if compile:
            new.compile(mode="reduce-overhead" if model.device.type == "cuda" else None)
        fast.encoder.blocks[i] = new
    return fast


def _for_attention(qkv_T3D: torch.Tensor) -> torch.Tensor:
    """As it is on a GPU; float32 on a CPU, where the native kernel takes that and torch's is no faster in bfloat16."""
    return qkv_T3D if qkv_T3D.is_cuda else qkv_T3D.float()


def _parameters(norm: nn.LayerNorm, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return norm.weight.to(dtype), norm.bias.to(dtype)
