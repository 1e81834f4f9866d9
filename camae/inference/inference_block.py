"""Inference blocks: both kinds of transformer block, fused in C++, on the GPU kernels, or layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from camae.inference.inference_linear import KINDS, InferenceLinear
from camae.kernels import transformer_block
from camae.kernels._cpu import has_tiles
from camae.kernels.fused_linear import gelu_linear, norm_linear
from camae.kernels.transformer_block import (
    block_tail_op,
    fits,
    instructions,
    pack_weight,
    self_attention_op,
)
from camae.model.backends import Backends
from camae.model.blocks import (
    HeadNorms,
    ParallelBlock,
    ResidualBlock,
    Sequences,
    SequentialBlock,
    Stream,
    attend,
)

Linear = tuple[torch.Tensor, torch.Tensor]  # weight (F, D) and bias (F,)


@dataclass(frozen=True)
class BlockLayers:
    """Layers of a parallel or sequential block, LayerScale multiplied into the output projections.

    mlp_norm: norm of the tokens after attention (sequential); None where the MLP takes the same normed tokens as
        attention (parallel). qkv_biased: whether the bias of qkv may be other than 0.
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
    qkv_biased: bool = True


def block_layers(block: ParallelBlock | SequentialBlock) -> BlockLayers:
    """Layers of a block, from its current weights."""
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
        qkv_biased=block.shifted_bias,
    )


class LayerwiseBlock:
    """Block as four `InferenceLinear` and an attention back-end: any kind, any device.

    kind, packed: as in `InferenceLinear`. backends: of which attention's is used.
    """

    def __init__(self, layers: BlockLayers, kind: str, packed: bool, backends: Backends):
        self.layers, self.attention, self.low = layers, backends.attention, kind == "bfloat16"
        # Attention in bfloat16 is fast on a GPU, and by SDPA on a CPU with AMX.
        self.low_attention = layers.norm.weight.is_cuda or (has_tiles() and self.attention != "native")
        self.qkv, self.proj, self.mlp_in, self.mlp_out = (
            InferenceLinear(*linear, kind, packed=packed)
            for linear in (layers.qkv, layers.proj, layers.mlp_in, layers.mlp_out)
        )

    def __call__(self, tokens_TD: torch.Tensor, sequences: Sequences) -> torch.Tensor:
        """Tokens (T, D) after the block."""
        layers = self.layers
        normed_TD = self._norm(layers.norm, tokens_TD)
        qkv_T3D = self.qkv(normed_TD)
        q, k, v = (qkv_T3D if self.low_attention else qkv_T3D.float()).chunk(3, dim=1)
        norms: HeadNorms = {}
        if layers.q_norm is not None and layers.k_norm is not None:
            q_norm, k_norm = (_parameters(norm, q.dtype) for norm in (layers.q_norm, layers.k_norm))
            norms = {"q_norm": q_norm, "k_norm": k_norm, "norm_eps": layers.q_norm.eps}
        attention_TD = attend(q, k, v, layers.heads, sequences, sequences, self.attention, **norms)
        tokens_TD = self.proj(attention_TD, add_TF=tokens_TD)
        if layers.mlp_norm is not None:
            normed_TD = self._norm(layers.mlp_norm, tokens_TD)
        return self.mlp_out(self.mlp_in(normed_TD, gelu=True), add_TF=tokens_TD)

    def _norm(self, norm: nn.LayerNorm, tokens_TD: torch.Tensor) -> torch.Tensor:
        """Normed tokens as the products take them, converted once for all of them."""
        normed_TD: torch.Tensor = norm(tokens_TD)
        return normed_TD.bfloat16() if self.low else normed_TD


class KernelBlock:
    """Block on a GPU: products of packed weights, elementwise kernels and attention between them.

    kind: as in `InferenceLinear`. backends: of which attention's and the elementwise one are used.
    """

    def __init__(self, layers: BlockLayers, kind: str, backends: Backends):
        self.layers, self.backends, self.low = layers, backends, kind == "bfloat16"
        weights = [linear[0] for linear in (layers.proj, layers.mlp_out)]
        biases = [linear[1] for linear in (layers.proj, layers.mlp_out)]
        (qkv_weight, qkv_bias), (in_weight, in_bias) = layers.qkv, layers.mlp_in
        self.in_bias: torch.Tensor | None = in_bias
        self.qkv_bias: torch.Tensor | None = qkv_bias
        if layers.mlp_norm is None:
            # One product for all four; both output biases in one, and the attention's product adds to the MLP's.
            self.qkv_bias = torch.cat([in_bias, qkv_bias]) if layers.qkv_biased else None
            self.in_bias = None if layers.qkv_biased else in_bias
            qkv_weight = torch.cat([in_weight, qkv_weight])
            biases[1] = biases[0] + biases[1]
        dtype = KINDS[kind]
        packed = (x.to(dtype).contiguous() for x in (qkv_weight, in_weight, *weights, *biases))
        self.qkv, self.mlp_in, self.proj, self.mlp_out, self.proj_bias, self.mlp_out_bias = packed

    def __call__(self, stream: Stream, sequences: Sequences) -> Stream:
        """The stream after the block, its last update not added yet."""
        with torch.autocast(stream.tokens_TD.device.type, torch.bfloat16, enabled=self.low):
            if self.layers.mlp_norm is None:
                return self._parallel(stream, sequences)
            return self._sequential(stream, sequences, self.layers.mlp_norm)

    def _parallel(self, stream: Stream, sequences: Sequences) -> Stream:
        hidden, D = self.layers.mlp_in[0].shape
        tokens_TD, fused_TF = self._norm_linear(stream, self.layers.norm, self.qkv, self.qkv_bias)
        mlp_TD, q, k, v = gelu_linear(
            *(fused_TF, self.in_bias, (hidden, D, D, D), self.mlp_out, self.mlp_out_bias),
            backend=self.backends.elementwise,
        )
        return Stream(tokens_TD, mlp_TD.addmm_(self._attend(q, k, v, sequences), self.proj.t()))

    def _sequential(self, stream: Stream, sequences: Sequences, mlp_norm: nn.LayerNorm) -> Stream:
        tokens_TD, qkv_T3D = self._norm_linear(stream, self.layers.norm, self.qkv, self.qkv_bias)
        q, k, v = qkv_T3D.chunk(3, dim=1)
        attention_TD = self._attend(q, k, v, sequences)
        update_TD = F.linear(attention_TD, self.proj, self.proj_bias)
        y_TD, fused_Th = self._norm_linear(Stream(tokens_TD, update_TD), mlp_norm, self.mlp_in, None)
        (mlp_TD,) = gelu_linear(
            *(fused_Th, self.in_bias, (fused_Th.shape[1],), self.mlp_out, self.mlp_out_bias),
            backend=self.backends.elementwise,
        )
        return Stream(y_TD, mlp_TD)

    def _norm_linear(
        self, stream: Stream, norm: nn.LayerNorm, weight_FD: torch.Tensor, bias_F: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return norm_linear(
            *(stream.tokens_TD, norm.weight, norm.bias, norm.eps, weight_FD, bias_F),
            update_TD=stream.update_TD,
            backend=self.backends.elementwise,
        )

    def _attend(
        self, q_TD: torch.Tensor, k_TD: torch.Tensor, v_TD: torch.Tensor, sequences: Sequences
    ) -> torch.Tensor:
        layers, norms = self.layers, HeadNorms()
        if layers.q_norm is not None and layers.k_norm is not None:
            q_norm, k_norm = ((norm.weight, norm.bias) for norm in (layers.q_norm, layers.k_norm))
            norms = {"q_norm": q_norm, "k_norm": k_norm, "norm_eps": layers.q_norm.eps}
        attention = self.backends.attention
        return attend(q_TD, k_TD, v_TD, layers.heads, sequences, sequences, attention, **norms)


class FusedBlock:
    """Block as the two C++ ops of `camae.kernels.transformer_block` on a CPU.

    kind: of the products, as in `InferenceLinear`. instruction_set: None: the best of this processor for it.
    """

    def __init__(self, layers: BlockLayers, kind: str = "float32", instruction_set: str | None = None):
        self.instruction_set = instruction_set or instructions(kind)[0]
        self.heads, self.parallel = layers.heads, layers.mlp_norm is None
        self.qkv = [pack_weight(weight, self.instruction_set) for weight in layers.qkv[0].chunk(3)]
        self.qkv_bias = _contiguous(layers.qkv[1])
        self.proj, self.mlp_in, self.mlp_out = (
            (pack_weight(weight, self.instruction_set), _contiguous(bias))
            for weight, bias in (layers.proj, layers.mlp_in, layers.mlp_out)
        )
        self.norm, self.mlp_norm = _packed_norm(layers.norm), _packed_norm(layers.mlp_norm or layers.norm)
        self.q_norm, self.k_norm = (
            _packed_norm(norm)[0] if norm is not None else None for norm in (layers.q_norm, layers.k_norm)
        )
        self.head_eps = 0.0 if layers.q_norm is None else layers.q_norm.eps
        self.scale = (layers.norm.weight.numel() // layers.heads) ** -0.5

    @staticmethod
    def supports(block: ParallelBlock | SequentialBlock, kind: str) -> bool:
        """Whether the C++ ops take a block's widths and are the fastest form of this kind on this machine.

        In bfloat16 on processors with AVX512_BF16; AMX is faster still, and torch's products and SDPA have it.
        """
        proj = block.attn_out_proj if isinstance(block, ParallelBlock) else block.proj
        mlp_out = block.mlp_out_proj if isinstance(block, ParallelBlock) else block.fc2
        D = proj.out_features
        usable = transformer_block.backends(proj.weight.device)[0].usable
        if not usable or not fits(mlp_out.in_features, D, D // block.heads):
            return False
        return kind == "float32" or (bool(instructions(kind)) and not has_tiles())

    def __call__(self, tokens_TD: torch.Tensor, sequences: Sequences) -> torch.Tensor:
        """Tokens (T, D) after the block, float32."""
        tokens_TD = tokens_TD.float()
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
            self.instruction_set,
        )
        return block_tail_op(
            tokens_TD,
            attended_TD,
            *self.proj,
            self.parallel,
            *self.mlp_norm,
            *self.mlp_in,
            *self.mlp_out,
            self.instruction_set,
        )


class InferenceBlock(ResidualBlock):
    """Transformer block for inference, called as the block it is made from. Not differentiable.

    kind, packed: as in `InferenceLinear`. runner: `FusedBlock` for packed ones on a CPU that has the C++ ops, with the
    default or "native" back-ends of block and attention; `KernelBlock` for packed ones on a GPU; else
    `LayerwiseBlock`. Weights are packed again when they are moved to another device or the back-ends change.
    """

    runner: FusedBlock | KernelBlock | LayerwiseBlock

    def __init__(self, block: ParallelBlock | SequentialBlock, kind: str, packed: bool):
        super().__init__(block.backends)
        self.block, self.kind, self.packed = block, kind, packed
        self.pack()

    def pack(self) -> None:
        """Make the runner from the block's current weights."""
        layers = block_layers(self.block)
        if self.packed and fusible(self.backends) and FusedBlock.supports(self.block, self.kind):
            self.runner = FusedBlock(layers, self.kind)
        elif self.packed and layers.norm.weight.is_cuda:
            self.runner = KernelBlock(layers, self.kind, self.backends)
        else:
            self.runner = LayerwiseBlock(layers, self.kind, self.packed, self.backends)

    def on_backends_changed(self) -> None:
        """Pack again."""
        self.pack()

    def advance(self, stream: Stream, sequences: Sequences) -> Stream:
        """The stream after the block; on a CPU the block adds its updates itself."""
        if isinstance(self.runner, KernelBlock):
            return self.runner(stream, sequences)
        return Stream(self.runner(self.value(stream), sequences))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> InferenceBlock:
        super()._apply(fn, recurse)
        self.pack()
        return self


def fusible(backends: Backends) -> bool:
    """Whether back-ends leave whole blocks to the C++ ops."""
    return backends.block in (None, "native") and backends.attention in (None, "native")


def _parameters(norm: nn.LayerNorm, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return norm.weight.to(dtype), norm.bias.to(dtype)


def _packed_norm(norm: nn.LayerNorm) -> tuple[torch.Tensor, float]:
    """Weight and bias (2, d), and eps."""
    return torch.stack([norm.weight.detach(), norm.bias.detach()]).float(), norm.eps


def _contiguous(bias_F: torch.Tensor) -> torch.Tensor:
    return bias_F.detach().float().contiguous()
