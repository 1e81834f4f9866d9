"""Blocks for inference: both forms of block as the same four linear layers, run by one of two back-ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from camae.inference.fast_linear import FastLinear
from camae.kernels.transformer_block import (
    backends,
    block_tail_op,
    fits,
    instructions,
    pack_weight,
    self_attention_op,
)
from camae.model.blocks import ParallelBlock, Sequences, SequentialBlock, attend

Linear = tuple[torch.Tensor, torch.Tensor]  # weight (F, D) and bias (F,)


@dataclass(frozen=True)
class BlockLayers:
    """A block of either form, LayerScale multiplied into its output projections.

    mlp_norm: None where the MLP takes the same normed tokens as attention (the parallel form); else it norms the
        tokens after attention.
    """

    heads: int
    norm: nn.LayerNorm
    qkv: Linear
    q_norm: nn.LayerNorm | None
    k_norm: nn.LayerNorm | None
    proj: Linear
    mlp_norm: nn.LayerNorm | None
    mlp_in: Linear
    mlp_out: Linear


def layers_of(block: ParallelBlock | SequentialBlock) -> BlockLayers:
    """The layers of a block, from its weights as they are now."""
    if isinstance(block, SequentialBlock):
        layers = block.qkv, block.proj, block.fc1, block.fc2
        qkv, proj, mlp_in, mlp_out = ((x.weight.detach(), x.bias.detach()) for x in layers)
        return BlockLayers(block.heads, block.norm1, qkv, None, None, proj, block.norm2, mlp_in, mlp_out)
    hidden, weight, bias = block.mlp_bias.numel(), block.in_proj.weight.detach(), block.in_bias().detach()
    gamma_D = block.gamma.detach()
    proj, mlp_out = (
        (gamma_D[:, None] * layer.weight.detach(), gamma_D * layer.bias.detach())
        for layer in (block.attn_out_proj, block.mlp_out_proj)
    )
    return BlockLayers(
        heads=block.heads,
        norm=block.in_norm,
        qkv=(weight[hidden:], bias[hidden:]),
        q_norm=block.q_norm,
        k_norm=block.k_norm,
        proj=proj,
        mlp_norm=None,
        mlp_in=(weight[:hidden], bias[:hidden]),
        mlp_out=mlp_out,
    )


class LayeredBlock:
    """The block as four `FastLinear` and an attention back-end: any kind, any device."""

    def __init__(self, layers: BlockLayers, kind: str, packed: bool):
        self.layers = layers
        self.qkv, self.proj, self.mlp_in, self.mlp_out = (
            FastLinear(*linear, kind, packed=packed)
            for linear in (layers.qkv, layers.proj, layers.mlp_in, layers.mlp_out)
        )

    def __call__(self, tokens_TD: torch.Tensor, sequences: Sequences, backend: str | None) -> torch.Tensor:
        layers = self.layers
        normed_TD = layers.norm(tokens_TD)
        q, k, v = _for_attention(self.qkv(normed_TD)).chunk(3, dim=1)
        norms = {"q_norm": layers.q_norm, "k_norm": layers.k_norm}
        given = {name: _parameters(norm, q.dtype) for name, norm in norms.items() if norm is not None}
        eps = {} if layers.q_norm is None else {"norm_eps": layers.q_norm.eps}
        attention_TD = attend(q, k, v, layers.heads, sequences, sequences, backend, **given, **eps)
        tokens_TD = self.proj(attention_TD, add_TF=tokens_TD)
        if layers.mlp_norm is not None:
            normed_TD = layers.mlp_norm(tokens_TD)
        return self.mlp_out(self.mlp_in(normed_TD, gelu=True), add_TF=tokens_TD)


class NativeBlock:
    """The block as the two C++ ops of `camae.kernels.transformer_block`: float32 on a CPU."""

    def __init__(self, layers: BlockLayers):
        self.heads, self.parallel = layers.heads, layers.mlp_norm is None
        self.qkv = [pack_weight(weight) for weight in layers.qkv[0].chunk(3)]
        self.qkv_bias = _contiguous(layers.qkv[1])
        self.proj, self.mlp_in, self.mlp_out = (
            (pack_weight(weight), _contiguous(bias))
            for weight, bias in (layers.proj, layers.mlp_in, layers.mlp_out)
        )
        self.norm, self.mlp_norm = _packed_norm(layers.norm), _packed_norm(layers.mlp_norm or layers.norm)
        self.q_norm, self.k_norm = (
            _packed_norm(norm)[0] if norm is not None else None for norm in (layers.q_norm, layers.k_norm)
        )
        self.head_eps = 0.0 if layers.q_norm is None else layers.q_norm.eps
        self.scale = (layers.norm.weight.numel() // layers.heads) ** -0.5

    @staticmethod
    def takes(layers: BlockLayers) -> bool:
        """Whether these layers can run so here."""
        weight = layers.mlp_in[0]
        hidden, D = weight.shape
        return backends(weight.device)[0].usable and fits(hidden, D, D // layers.heads)

    def __call__(self, tokens_TD: torch.Tensor, sequences: Sequences, backend: str | None) -> torch.Tensor:
        best = instructions()[0]
        attended_TD = self_attention_op(
            tokens_TD,
            *self.norm,
            self.qkv,
            self.qkv_bias,
            self.heads,
            self.q_norm,
            self.k_norm,
            self.head_eps,
            sequences.cu_seqlens,
            self.scale,
            best,
        )
        return block_tail_op(
            tokens_TD,
            attended_TD,
            *self.proj,
            self.parallel,
            *self.mlp_norm,
            *self.mlp_in,
            *self.mlp_out,
            best,
        )


class FastBlock(nn.Module):
    """A block for inference, same call; packed again wherever its own weights are moved to.

    runner: what runs it here. `NativeBlock` in float32 on a CPU that has the kernels, unless the model was told of
        another attention back-end; else `LayeredBlock`.
    """

    runner: NativeBlock | LayeredBlock

    def __init__(
        self, block: ParallelBlock | SequentialBlock, kind: str, packed: bool, attention: str | None
    ):
        super().__init__()
        self.block, self.kind, self.packed, self.attention = block, kind, packed, attention
        self.pack()

    def pack(self) -> None:
        """Make the runner from the block's weights, where these are now."""
        layers = layers_of(self.block)
        whole = self.kind == "float32" and self.packed and self.attention in (None, "native")
        if whole and NativeBlock.takes(layers):
            self.runner = NativeBlock(layers)
        else:
            self.runner = LayeredBlock(layers, self.kind, self.packed)

    def forward(self, tokens_TD: torch.Tensor, sequences: Sequences, backend: str | None) -> torch.Tensor:
        if backend != self.attention:  # the model was told of another since
            self.attention = backend
            self.pack()
        return self.runner(tokens_TD, sequences, backend)

    def _apply(self, fn: Any, recurse: bool = True) -> FastBlock:
        super()._apply(fn, recurse)
        self.pack()
        return self


def _for_attention(qkv_T3D: torch.Tensor) -> torch.Tensor:
    """As it is on a GPU; float32 on a CPU, where the native kernel takes that and torch's is no faster in bfloat16."""
    return qkv_T3D if qkv_T3D.is_cuda else qkv_T3D.float()


def _parameters(norm: nn.LayerNorm, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return norm.weight.to(dtype), norm.bias.to(dtype)


def _packed_norm(norm: nn.LayerNorm) -> tuple[torch.Tensor, float]:
    """Weight and bias (2, d), and eps."""
    return torch.stack([norm.weight.detach(), norm.bias.detach()]).float(), norm.eps


def _contiguous(bias_F: torch.Tensor) -> torch.Tensor:
    return bias_F.detach().float().contiguous()
