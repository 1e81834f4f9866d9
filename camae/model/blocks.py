"""Transformer blocks on packed tokens (T, D): parallel, sequential (pre-norm), and cross-attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypedDict, Unpack, overload

import torch
from torch import nn

from camae.kernels.fused_linear import elementwise_backend, gelu_linear, norm_linear
from camae.kernels.residual_norm import residual_norm
from camae.kernels.varlen_attention import varlen_attention
from camae.model.backends import BackendModule, Backends
from camae.model.config import ModelConfig

Maybe = torch.Tensor | None


@dataclass(frozen=True)
class Sequences:
    """Sequences of a packed (T, D) tensor.

    cu_seqlens: (B + 1,) int32, where each begins. lengths: the same on the host. segment_T: (T,) int64, the sequence
    of every row; stochastic depth needs it.
    """

    cu_seqlens: torch.Tensor
    lengths: tuple[int, ...]
    segment_T: torch.Tensor | None = None


class HeadNorms(TypedDict, total=False):
    """Query and key norms of attention: (weight, bias), each (head dim,), and their eps."""

    q_norm: tuple[torch.Tensor, torch.Tensor]
    k_norm: tuple[torch.Tensor, torch.Tensor]
    norm_eps: float


class DropPath(TypedDict, total=False):
    """Stochastic depth of a residual update: (B,) float32 factors, and the (T,) int64 sample of every row."""

    factor_B: torch.Tensor
    segment_T: torch.Tensor


class Stream(NamedTuple):
    """Residual stream between blocks: tokens (T, D), and the last block's update that is still to be added.

    The next norm adds it in the same pass. tokens + gamma * update under stochastic depth is the stream's value.
    """

    tokens_TD: torch.Tensor
    update_TD: Maybe = None
    gamma_D: Maybe = None
    drop_path: DropPath = DropPath()


def initialize_linears(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases in every linear layer (He et al.)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def attend(
    q_TD: torch.Tensor,
    k_SD: torch.Tensor,
    v_SD: torch.Tensor,
    heads: int,
    queries: Sequences,
    keys: Sequences,
    backend: str | None,
    **norms: Unpack[HeadNorms],
) -> torch.Tensor:
    """Multi-head attention (T, D) within sequences. Errors as `varlen_attention`."""
    out_THd = varlen_attention(
        q_TD.unflatten(1, (heads, -1)),
        k_SD.unflatten(1, (heads, -1)),
        v_SD.unflatten(1, (heads, -1)),
        queries.cu_seqlens,
        keys.cu_seqlens,
        backend=backend,
        lengths_q=queries.lengths,
        lengths_k=keys.lengths,
        **norms,
    )
    return out_THd.flatten(1)


class Block(BackendModule):
    """Base class of blocks: norms, GELUs and residual sums on the elementwise back-end.

    save_activations: False recomputes normed and activated tokens in the backward pass (selective activation
        checkpointing); products and attention are always saved. rate: of stochastic depth.
    """

    def __init__(self, backends: Backends | None = None, rate: float = 0.0):
        super().__init__(backends)
        self.rate = rate
        self.save_activations = True

    def value(self, stream: Stream) -> torch.Tensor:
        """Tokens (T, D) with their update added."""
        tokens_TD, update_TD, gamma_D, drop_path = stream
        if update_TD is None:
            return tokens_TD
        elementwise = self.backends.elementwise
        return residual_norm(tokens_TD, update_TD, gamma_D, **drop_path, backend=elementwise)[0]

    def norm_linear(
        self, stream: Stream, norm: nn.LayerNorm, weight_FD: torch.Tensor, bias_F: Maybe
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(y, linear(norm(y))), (T, D) and (T, F), y being the stream's value."""
        return norm_linear(
            stream.tokens_TD,
            norm.weight,
            norm.bias,
            norm.eps,
            weight_FD,
            bias_F,
            update_TD=stream.update_TD,
            gamma_D=stream.gamma_D,
            save_activations=self.save_activations,
            backend=self.backends.elementwise,
            **stream.drop_path,
        )

    def gelu_linear(
        self,
        fused_TF: torch.Tensor,
        bias_h: Maybe,
        widths: tuple[int, ...],
        weight_Dh: torch.Tensor,
        bias_D: Maybe,
    ) -> tuple[torch.Tensor, ...]:
        """linear(gelu(first columns + bias_h)), (T, D), and the other columns."""
        saved, backend = self.save_activations, self.backends.elementwise
        return gelu_linear(
            fused_TF, bias_h, widths, weight_Dh, bias_D, save_activations=saved, backend=backend
        )

    def bias_placement(self, bias: torch.Tensor, device: torch.device) -> tuple[Maybe, Maybe]:
        """A hidden bias as (bias of the product, bias of the GELU), one of them None.

        The kernels take it with the GELU, whose backward pass then sums its gradient in passing.
        """
        return (
            (None, bias)
            if elementwise_backend(self.backends.elementwise, device) == "triton"
            else (bias, None)
        )

    def drop_path(self, sequences: Sequences, device: torch.device) -> DropPath:
        """Stochastic depth: a sample's update is dropped with probability `rate`, the others scaled up."""
        if self.rate == 0 or not self.training or sequences.segment_T is None:
            return {}
        kept_B = torch.rand(len(sequences.lengths), device=device) >= self.rate
        return {"factor_B": kept_B.to(torch.float32) / (1 - self.rate), "segment_T": sequences.segment_T}


class ResidualBlock(Block):
    """Base class of blocks that take the residual stream and hand it on, their last update not added yet.

    adds_update: add it inside the block, for parameters that are whole only there (FSDP).
    """

    adds_update = False

    @overload
    def forward(self, tokens: torch.Tensor, sequences: Sequences) -> torch.Tensor: ...

    @overload
    def forward(self, tokens: Stream, sequences: Sequences) -> Stream: ...

    def forward(self, tokens: torch.Tensor | Stream, sequences: Sequences) -> torch.Tensor | Stream:
        """Tokens (T, D) after the block; of a stream the stream."""
        if isinstance(tokens, Stream):
            stream = self.advance(tokens, sequences)
            return Stream(self.value(stream)) if self.adds_update else stream
        return self.value(self.advance(Stream(tokens), sequences))

    def advance(self, stream: Stream, sequences: Sequences) -> Stream:
        """The stream after the block, its last update not added yet."""
        raise NotImplementedError


class ParallelBlock(ResidualBlock):
    """Parallel block: x + gamma * (attention(norm(x)) + mlp(norm(x))), one norm and one fused in-projection.

    in_proj rows: [mlp, q, k, v]. `mlp_bias` falls on the MLP rows; with bias_layout "timm<=1.0.24" it is
    shifted by three widths, as released weights were trained (rows 0..3D-1 get none, q, k, v get the rest).
    """

    def __init__(self, c: ModelConfig, rate: float, backends: Backends | None = None):
        super().__init__(backends, rate)
        D, hidden = c.width, c.width * c.mlp_ratio
        self.heads, self.shifted_bias = c.heads, c.bias_layout != "mlp"
        self.in_norm = nn.LayerNorm(D, eps=c.norm_eps)
        self.in_proj = nn.Linear(D, hidden + 3 * D, bias=False)
        self.mlp_bias = nn.Parameter(torch.zeros(hidden))
        self.q_norm = nn.LayerNorm(D // c.heads, eps=c.norm_eps)
        self.k_norm = nn.LayerNorm(D // c.heads, eps=c.norm_eps)
        self.attn_out_proj = nn.Linear(D, D)
        self.mlp_out_proj = nn.Linear(hidden, D)
        self.gamma = nn.Parameter(torch.full((D,), c.layer_scale))

    def in_bias(self) -> torch.Tensor:
        """Bias of the fused in-projection, (hidden + 3D,)."""
        zeros = self.mlp_bias.new_zeros(3 * self.gamma.numel())
        parts = (zeros, self.mlp_bias) if self.shifted_bias else (self.mlp_bias, zeros)
        return torch.cat(parts)

    def advance(self, stream: Stream, sequences: Sequences) -> Stream:
        """The stream after the block, its last update not added yet."""
        D, hidden, device = self.gamma.numel(), self.mlp_bias.numel(), stream.tokens_TD.device
        product_bias, gelu_bias = self.bias_placement(self.mlp_bias, device)
        if product_bias is not None or self.shifted_bias:
            product_bias, gelu_bias = self.in_bias(), None
        tokens_TD, fused_TF = self.norm_linear(stream, self.in_norm, self.in_proj.weight, product_bias)
        # Both output biases go in here, and the attention's product adds to this one's: no pass for the sum.
        out_bias = self.mlp_out_proj.bias + self.attn_out_proj.bias
        mlp_TD, q, k, v = self.gelu_linear(
            fused_TF, gelu_bias, (hidden, D, D, D), self.mlp_out_proj.weight, out_bias
        )
        attention_TD = attend(
            *(q, k, v, self.heads, sequences, sequences, self.backends.attention),
            q_norm=(self.q_norm.weight, self.q_norm.bias),
            k_norm=(self.k_norm.weight, self.k_norm.bias),
            norm_eps=self.q_norm.eps,
        )
        update_TD = torch.addmm(mlp_TD, attention_TD, self.attn_out_proj.weight.t())
        return Stream(tokens_TD, update_TD, self.gamma, self.drop_path(sequences, device))


class MLPBlock(Block):
    """Base class of blocks that end in a residual MLP of two linear layers with a GELU between."""

    fc1: nn.Linear
    fc2: nn.Linear

    def mlp(
        self, tokens_TD: torch.Tensor, update_TD: Maybe, norm: nn.LayerNorm, sequences: Sequences
    ) -> Stream:
        """y and its update fc2(gelu(fc1(norm(y)))), y = tokens + update, each update under stochastic depth."""
        device, fc1, fc2 = tokens_TD.device, self.fc1, self.fc2
        product_bias, gelu_bias = self.bias_placement(fc1.bias, device)
        drop_path: DropPath = {} if update_TD is None else self.drop_path(sequences, device)
        stream = Stream(tokens_TD, update_TD, None, drop_path)
        y_TD, fused_TF = self.norm_linear(stream, norm, fc1.weight, product_bias)
        (mlp_TD,) = self.gelu_linear(fused_TF, gelu_bias, (fc1.out_features,), fc2.weight, fc2.bias)
        return Stream(y_TD, mlp_TD, None, self.drop_path(sequences, device))


class SequentialBlock(MLPBlock, ResidualBlock):
    """Pre-norm ViT block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        eps: float,
        rate: float = 0.0,
        backends: Backends | None = None,
    ):
        super().__init__(backends, rate)
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def advance(self, stream: Stream, sequences: Sequences) -> Stream:
        """The stream after the block, its last update not added yet."""
        tokens_TD, qkv_T3D = self.norm_linear(stream, self.norm1, self.qkv.weight, self.qkv.bias)
        q, k, v = qkv_T3D.chunk(3, dim=1)
        attention_TD = attend(q, k, v, self.heads, sequences, sequences, self.backends.attention)
        return self.mlp(tokens_TD, self.proj(attention_TD), self.norm2, sequences)


class CrossAttention(MLPBlock):
    """Cross-attention block: queries of patches over the tokens of their sample, then z + MLP(norm(z)).

    residual: add attention to its queries.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        eps: float,
        residual: bool,
        backends: Backends | None = None,
    ):
        super().__init__(backends)
        self.heads, self.residual = heads, residual
        self.query_norm = nn.LayerNorm(width, eps=eps)
        self.context_norm = nn.LayerNorm(width, eps=eps)
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.out_norm = nn.LayerNorm(width, eps=eps)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def query(self, x_TD: torch.Tensor) -> torch.Tensor:
        """Projected queries (T, width)."""
        return self.norm_linear(Stream(x_TD), self.query_norm, self.q.weight, None)[1]

    def keys_values(self, x_SD: torch.Tensor) -> torch.Tensor:
        """Projected keys and values side by side (S, 2 * width)."""
        return self.norm_linear(Stream(x_SD), self.context_norm, self.kv.weight, None)[1]

    def forward(
        self,
        query_TD: torch.Tensor,
        q_TD: torch.Tensor,
        kv_SD: torch.Tensor,
        queries: Sequences,
        keys: Sequences,
    ) -> torch.Tensor:
        """Features (T, width) of queries `query_TD`, projected as `q_TD`, over keys and values `kv_SD`."""
        k, v = kv_SD.chunk(2, dim=1)
        z_TD = self.proj(attend(q_TD, k, v, self.heads, queries, keys, self.backends.attention))
        if self.residual:
            return self.value(self.mlp(query_TD, z_TD, self.out_norm, queries))
        return self.value(self.mlp(z_TD, None, self.out_norm, queries))
