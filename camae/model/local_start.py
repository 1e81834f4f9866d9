"""Initialization of cross-attention that attends to the patch's own position.

From random weights attention is nearly uniform, so every masked patch gets the same average of its sample and
the loss stays near 1 until position matching is found: hundreds of steps. Here the first queries and keys read
the sine-cosine positions alone, and positions and channel tokens outweigh the content of the visible tokens.
Everything stays trainable; only the starting point differs.
"""

from __future__ import annotations

import torch
from torch import nn

from camae.model.blocks import CrossAttention

# Frequencies below 10000^(-3/8) turn by less than half a radian over 16 patches and tell no places apart.
_USEFUL_SHARE = 3 / 8
_CONTENT_SCALE = 0.25
_CHANNEL_TOKEN_STD = 0.2


def position_columns(width: int, heads: int, head: int) -> list[int]:
    """Columns of the position table (`sincos_positions`) that one head reads: sin and cos, rows and columns.

    A head of d features reads d/4 frequencies, spread over the useful ones; heads take turns.
    """
    quarter, count = width // 4, width // heads // 4
    stride = max(1, int(quarter * _USEFUL_SHARE) // count)
    frequencies = [head % stride + stride * j for j in range(count)]
    return [group * quarter + i for group in range(4) for i in frequencies]


@torch.no_grad()
def start_local(project: nn.Linear, channel_tokens_CD: nn.Parameter, cross: list[CrossAttention]) -> None:
    """Initialize a decoder's input projection, channel tokens and cross-attention blocks in place."""
    project.weight.mul_(_CONTENT_SCALE)
    nn.init.normal_(channel_tokens_CD, std=_CHANNEL_TOKEN_STD)
    for block in cross:
        width = block.q.in_features
        head_dim = width // block.heads
        select_DD = torch.zeros(width, width, device=block.q.weight.device)
        for head in range(block.heads):
            for row, column in enumerate(position_columns(width, block.heads, head)):
                select_DD[head * head_dim + row, column] = 1
        block.q.weight.copy_(select_DD)
        block.kv.weight[:width].copy_(select_DD)
