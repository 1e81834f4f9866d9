"""Encoder and decoder blocks on packed tokens (T, D)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from camae.kernels.fused_linear import gelu_linear, glue_backend, norm_linear
from camae.kernels.residual_norm import residual_norm
from camae.kernels.varlen_attention import varlen_attention
from camae.model.config import ModelConfig

Maybe = torch.Tensor | None


def initialize_linears(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases in every linear layer (He et al.)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def run_block(block: nn.Module, recompute: bool, *inputs: Any) -> torch.Tensor:
    """block(*inputs); with `recompute` its activations are computed again in the backward pass, not kept."""
    if recompute and torch.is_grad_enabled():
        # Stochastic depth draws the same numbers again: checkpoint restores the generators' states.
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)


class Sequences:
    """Where sequences begin in a packed (T, D) tensor, with lengths known on the host."""

    def __init__(
        self, cu_seqlens: torch.Tensor, lengths: tuple[int, ...], segment_T: torch.Tensor | None = None
    ):
        self.cu_seqlens = cu_seqlens
        self.lengths = lengths
        self.segment_T = segment_T


def attend(
    q_TD: torch.Tensor,
    k_SD: torch.Tensor,
    v_SD: torch.Tensor,
    heads: int,
    queries: Sequences,
    keys: Sequences,
    backend: str | None,
    **norms: Any,
) -> torch.Tensor:
    """Multi-head attention within sequences, of (T, D) tensors; `norms` as in varlen_attention."""
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


class Block(nn.Module):
    """What the blocks share: how the parts between their products run.

    glue: back-end of residual_norm and gelu_split, "triton" or "reference"; None is the device's default.
    keep: False: normed and activated tokens are computed again in the backward pass instead of kept, the products
        and attention are not (`run_block` is for whole blocks).
    """

    glue: str | None = None
    keep: bool = True
    rate: float = 0.0
    fc1: nn.Linear
    fc2: nn.Linear

    def norm_linear(
        self,
        tokens_TD: torch.Tensor,
        norm: nn.LayerNorm,
        weight: torch.Tensor,
        bias: Maybe,
        **residual: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(y, linear(norm(y))), y being the tokens with their residual update."""
        options: dict[str, Any] = {"keep": self.keep, "backend": self.glue}
        return norm_linear(
            tokens_TD,
            norm.weight,
            norm.bias,
            norm.eps,
            weight,
            bias,
            **residual,
            **options,
        )

    def gelu_linear(
        self, fused_TF: torch.Tensor, bias: Maybe, widths: tuple[int, ...], weight: torch.Tensor, out: Maybe
    ) -> tuple[torch.Tensor, ...]:
        """linear(gelu(first columns + bias)) and the other columns."""
        options: dict[str, Any] = {"keep": self.keep, "backend": self.glue}
        return gelu_linear(fused_TF, bias, widths, weight, out, **options)

    def places(self, bias: torch.Tensor, device: torch.device) -> tuple[Maybe, Maybe]:
        """Where a hidden bias is added: (with the product, with the GELU).

        The kernels take it with the GELU, whose backward pass then sums its gradient in passing.
        """
        return (None, bias) if glue_backend(self.glue, device) == "triton" else (bias, None)

    def mlp(
        self, tokens_TD: torch.Tensor, update_TD: Maybe, norm: nn.LayerNorm, sequences: Sequences
    ) -> torch.Tensor:
        """y + fc2(gelu(fc1(norm(y)))), y = tokens + update, each update under stochastic depth."""
        device, fc1, fc2 = tokens_TD.device, self.fc1, self.fc2
        early, late = self.places(fc1.bias, device)
        depth = {} if update_TD is None else self.depth(sequences, device)
        y_TD, fused_TF = self.norm_linear(tokens_TD, norm, fc1.weight, early, update_TD=update_TD, **depth)
        (update_TD,) = self.gelu_linear(fused_TF, late, (fc1.out_features,), fc2.weight, fc2.bias)
        return residual_norm(y_TD, update_TD, **self.depth(sequences, device), backend=self.glue)[0]

    def depth(self, sequences: Sequences, device: torch.device) -> dict[str, Any]:
        """Stochastic depth: a sample's update is dropped with probability `rate`, the others scaled up."""
        if self.rate == 0 or not self.training or sequences.segment_T is None:
            return {}
        kept = torch.rand(len(sequences.lengths), device=device) >= self.rate
        return {"factor_B": kept.to(torch.float32) / (1 - self.rate), "segment_T": sequences.segment_T}


def set_block_options(model: nn.Module, *, keep: bool | None = None, glue: str | None = None) -> None:
    """Set `keep` and `glue` (where given) in every block of a model."""
    for block in model.modules():
        if isinstance(block, Block):
            block.keep = block.keep if keep is None else keep
            block.glue = block.glue if glue is None else glue


class ParallelBlock(Block):
    """x + gamma * (attention_out + mlp_out), both branches from one norm and one in-projection.

    in_proj rows: [mlp, q, k, v]. `mlp_bias` falls on the MLP rows; with bias_layout "timm<=1.0.24" it is
    shifted by three widths, as released weights were trained (rows 0..3D-1 get none, q, k, v get the rest).
    """

    def __init__(self, c: ModelConfig, rate: float):
        super().__init__()
        D, hidden = c.width, c.width * c.mlp_ratio
        self.heads, self.rate, self.shifted_bias = c.heads, rate, c.bias_layout != "mlp"
        self.in_norm = nn.LayerNorm(D, eps=c.norm_eps)
        self.in_proj = nn.Linear(D, hidden + 3 * D, bias=False)
        self.mlp_bias = nn.Parameter(torch.zeros(hidden))
        self.q_norm = nn.LayerNorm(D // c.heads, eps=c.norm_eps)
        self.k_norm = nn.LayerNorm(D // c.heads, eps=c.norm_eps)
        self.attn_out_proj = nn.Linear(D, D)
        self.mlp_out_proj = nn.Linear(hidden, D)
        self.gamma = nn.Parameter(torch.full((D,), c.layer_scale))

    def in_bias(self) -> torch.Tensor:
        """The bias of the fused in-projection, (hidden + 3D,)."""
        zeros = self.mlp_bias.new_zeros(3 * self.gamma.numel())
        parts = (zeros, self.mlp_bias) if self.shifted_bias else (self.mlp_bias, zeros)
        return torch.cat(parts)

    def forward(self, tokens_TD: torch.Tensor, sequences: Sequences, backend: str | None) -> torch.Tensor:
        D, hidden, device = self.gamma.numel(), self.mlp_bias.numel(), tokens_TD.device
        early, late = self.places(self.mlp_bias, device)
        if early is not None or self.shifted_bias:
            early, late = self.in_bias(), None
        _, fused_TF = self.norm_linear(tokens_TD, self.in_norm, self.in_proj.weight, early)
        # Both output biases go in here, and the attention's product adds to this one's: no pass for the sum.
        out_bias = self.mlp_out_proj.bias + self.attn_out_proj.bias
        mlp_TD, q, k, v = self.gelu_linear(
            fused_TF, late, (hidden, D, D, D), self.mlp_out_proj.weight, out_bias
        )
        attention = attend(
            *(q, k, v, self.heads, sequences, sequences, backend),
            q_norm=(self.q_norm.weight, self.q_norm.bias),
            k_norm=(self.k_norm.weight, self.k_norm.bias),
            norm_eps=self.q_norm.eps,
        )
        update_TD = torch.addmm(mlp_TD, attention, self.attn_out_proj.weight.t())
        depth = self.depth(sequences, device)
        return residual_norm(tokens_TD, update_TD, self.gamma, **depth, backend=self.glue)[0]


class SequentialBlock(Block):
    """The pre-norm ViT block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float, rate: float = 0.0):
        super().__init__()
        self.heads, self.rate = heads, rate
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens_TD: torch.Tensor, sequences: Sequences, backend: str | None) -> torch.Tensor:
        _, qkv = self.norm_linear(tokens_TD, self.norm1, self.qkv.weight, self.qkv.bias)
        q, k, v = qkv.chunk(3, dim=1)
        attention = self.proj(attend(q, k, v, self.heads, sequences, sequences, backend))
        return self.mlp(tokens_TD, attention, self.norm2, sequences)


class CrossAttention(Block):
    """Queries of a plane look at the tokens of its sample, with or without a residual; then z + MLP(norm(z))."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float, residual: bool):
        super().__init__()
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
        return self.norm_linear(x_TD, self.query_norm, self.q.weight, None)[1]

    def keys_values(self, x_SD: torch.Tensor) -> torch.Tensor:
        """Projected keys and values side by side (S, 2 * width)."""
        return self.norm_linear(x_SD, self.context_norm, self.kv.weight, None)[1]

    def forward(
        self,
        query_TD: torch.Tensor,
        q_TD: torch.Tensor,
        kv_SD: torch.Tensor,
        queries: Sequences,
        keys: Sequences,
        backend: str | None,
    ) -> torch.Tensor:
        """Output (T, width) for queries `query_TD`, projected as `q_TD`, over keys and values `kv_SD`."""
        k, v = kv_SD.chunk(2, dim=1)
        z = self.proj(attend(q_TD, k, v, self.heads, queries, keys, backend))
        if self.residual:
            return self.mlp(query_TD, z, self.out_norm, queries)
        return self.mlp(z, None, self.out_norm, queries)
