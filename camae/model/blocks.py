"""Encoder and decoder blocks on packed tokens (T, D)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from camae.kernels.varlen_attention import varlen_attention
from camae.model.config import ModelConfig


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
) -> torch.Tensor:
    """Multi-head attention within sequences; q/k/v may be (T, D) or already (T, heads, d)."""

    def split(x: torch.Tensor) -> torch.Tensor:
        return x if x.ndim == 3 else x.unflatten(1, (heads, -1))

    out_THd = varlen_attention(
        split(q_TD),
        split(k_SD),
        split(v_SD),
        queries.cu_seqlens,
        keys.cu_seqlens,
        backend=backend,
        lengths_q=queries.lengths,
        lengths_k=keys.lengths,
    )
    return out_THd.flatten(1)


def drop_path(update_TD: torch.Tensor, rate: float, training: bool, sequences: Sequences) -> torch.Tensor:
    """Stochastic depth: a whole sample's update is dropped with probability `rate`, the rest scaled up."""
    if rate == 0 or not training or sequences.segment_T is None:
        return update_TD
    kept = torch.rand(len(sequences.lengths), device=update_TD.device) >= rate
    factor = kept.to(update_TD.dtype) / (1 - rate)
    return update_TD * factor[sequences.segment_T, None]


class ParallelBlock(nn.Module):
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
        D, hidden = self.gamma.numel(), self.mlp_bias.numel()
        fused = F.linear(self.in_norm(tokens_TD), self.in_proj.weight, self.in_bias())
        mlp, q, k, v = fused.split([hidden, D, D, D], dim=1)
        q_THd = self.q_norm(q.unflatten(1, (self.heads, -1)))
        k_THd = self.k_norm(k.unflatten(1, (self.heads, -1)))
        attention = attend(q_THd, k_THd, v, self.heads, sequences, sequences, backend)
        update = self.attn_out_proj(attention) + self.mlp_out_proj(F.gelu(mlp))
        return tokens_TD + drop_path(self.gamma * update, self.rate, self.training, sequences)


class SequentialBlock(nn.Module):
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
        q, k, v = self.qkv(self.norm1(tokens_TD)).chunk(3, dim=1)
        attention = self.proj(attend(q, k, v, self.heads, sequences, sequences, backend))
        tokens_TD = tokens_TD + drop_path(attention, self.rate, self.training, sequences)
        mlp = self.fc2(F.gelu(self.fc1(self.norm2(tokens_TD))))
        return tokens_TD + drop_path(mlp, self.rate, self.training, sequences)


class CrossAttention(nn.Module):
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
        return self.q(self.query_norm(x_TD))

    def keys_values(self, x_SD: torch.Tensor) -> torch.Tensor:
        """Projected keys and values side by side (S, 2 * width)."""
        return self.kv(self.context_norm(x_SD))

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
            z = z + query_TD
        return z + self.fc2(F.gelu(self.fc1(self.out_norm(z))))
