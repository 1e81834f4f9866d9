"""The encoder as timm's eager code computes it: what the embedding bench compares with.

Written plainly from the published form: dense float images (B, C, H, W), standardized in torch, one shared
convolution on each channel in turn, a position table added, standard blocks module by module on (B, L, D),
F.scaled_dot_product_attention, mean over patch tokens. The same weights as the camae model it is made from.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from camae.model import CAMAE
from camae.model.blocks import ParallelBlock


class PlainBlock(nn.Module):
    """A parallel block with fused in-projection, q/k norms and LayerScale, as timm's ParallelScalingBlock."""

    def __init__(self, block: ParallelBlock):
        super().__init__()
        self.heads = block.heads
        self.hidden = block.mlp_bias.numel()
        self.in_norm, self.in_proj = block.in_norm, block.in_proj
        self.in_bias: torch.Tensor
        self.register_buffer("in_bias", block.in_bias().detach().clone())
        self.q_norm, self.k_norm = block.q_norm, block.k_norm
        self.attn_out_proj, self.mlp_out_proj, self.gamma = (
            block.attn_out_proj,
            block.mlp_out_proj,
            block.gamma,
        )
        self.act = nn.GELU()

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        B, L, D = x_BLD.shape
        y = F.linear(self.in_norm(x_BLD), self.in_proj.weight, self.in_bias)
        mlp, q, k, v = torch.split(y, [self.hidden, D, D, D], dim=-1)
        q = self.q_norm(q.view(B, L, self.heads, -1)).transpose(1, 2)
        k = self.k_norm(k.view(B, L, self.heads, -1)).transpose(1, 2)
        v = v.view(B, L, self.heads, -1).transpose(1, 2)
        x_attn = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, L, D)
        y = self.attn_out_proj(x_attn) + self.mlp_out_proj(self.act(mlp))
        return x_BLD + y * self.gamma


class PlainEncoder(nn.Module):
    """Images (B, C, H, W), float 0..255, to mean embeddings (B, D)."""

    def __init__(self, model: CAMAE):
        super().__init__()
        e, P = model.encoder, model.config.patch
        D = model.config.width
        self.proj = nn.Conv2d(1, D, P, P)
        self.proj.weight.data = e.patch_weight_DP2.detach().reshape(D, 1, P, P).clone()
        self.proj.bias.data = e.patch_bias_D.detach().clone()  # type: ignore[union-attr]
        self.cls_D, self.positions_ND = e.cls_D, e.positions_ND
        self.blocks = nn.ModuleList(PlainBlock(b) for b in e.blocks)  # type: ignore[arg-type]
        self.variance = 1e-5

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        x = images_BCHW.float() / 255
        mean = x.mean((-2, -1), keepdim=True)
        x = (x - mean) / (x.var((-2, -1), unbiased=False, keepdim=True) + self.variance).sqrt()
        patches = [self.proj(x[:, c : c + 1]).flatten(2).transpose(1, 2) for c in range(x.shape[1])]
        x = torch.cat([p + self.positions_ND for p in patches], 1)
        x = torch.cat([self.cls_D.expand(len(x), 1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return x[:, 1:].mean(1)
