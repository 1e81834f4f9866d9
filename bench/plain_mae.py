"""A plain masked autoencoder in eager torch, written as He et al.'s code is: what the training bench compares with.

Dense float images from a torch DataLoader, patches by reshape, masks by gather, every patch of every channel
through the decoder, Adam over a list. The same encoder and decoder mathematics as camae's, loaded with the same
initial weights, so that the two can be held against each other; nothing else is shared.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tifffile
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Screen(Dataset):
    """Random crops of a manifest's sites, standardized by channel: (C, crop, crop) float32."""

    def __init__(self, paths: list[list[str]], crop: int, length: int, seed: int):
        self.paths, self.crop, self.length, self.seed = paths, crop, length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> torch.Tensor:
        epoch, place = divmod(i, len(self.paths))
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.paths))
        rng = np.random.default_rng([self.seed, epoch, place])
        image_CHW = np.stack([tifffile.imread(p) for p in self.paths[order[place]]]).astype(np.float32)
        y, x = (int(rng.integers(0, n - self.crop + 1)) for n in image_CHW.shape[1:])
        image_CHW = image_CHW[:, y : y + self.crop, x : x + self.crop]
        image_CHW = np.rot90(image_CHW, int(rng.integers(4)), (1, 2))
        if rng.random() < 0.5:
            image_CHW = image_CHW[:, :, ::-1]
        return standardize(torch.from_numpy(np.ascontiguousarray(image_CHW)))


def standardize(image_CHW: torch.Tensor) -> torch.Tensor:
    """(x - mean) / sqrt(var + eps^2) by channel, eps 1e-3 gray levels."""
    mean = image_CHW.mean((-2, -1), keepdim=True)
    return (image_CHW - mean) / (image_CHW.var((-2, -1), unbiased=False, keepdim=True) + 1e-6).sqrt()


def patchify(images_BCHW: torch.Tensor, P: int) -> torch.Tensor:
    """(B, C*N, P*P), channel by channel, row-major."""
    B, C, H, W = images_BCHW.shape
    x = images_BCHW.reshape(B, C, H // P, P, W // P, P).permute(0, 1, 2, 4, 3, 5)
    return x.reshape(B, -1, P * P)


class Attention(nn.Module):
    """Heads split, softmax(q k^T / sqrt(d)) v, heads joined."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class PlainMAE(nn.Module):
    """Encoder and decoders of a CA-MAE preset with shared cross-attention, on equal images (B, C, H, W)."""

    def __init__(self, model: Any):
        super().__init__()
        c = model.config
        self.c, self.d = c, c.decoder
        self.encoder, self.decoder = (
            model.encoder,
            model.decoder,
        )  # parameters and norms; forward is written here
        self.attention = Attention()

    def encode(self, patches_BLP: torch.Tensor, keep_BV: torch.Tensor) -> torch.Tensor:
        """(B, 1 + V, D)."""
        e, c = self.encoder, self.c
        C = patches_BLP.shape[1] // c.n_patches
        x = patches_BLP @ e.patch_weight_DP2.T + e.patch_bias_D + e.positions_ND.repeat(C, 1)
        x = x.gather(1, keep_BV[..., None].expand(-1, -1, c.width))
        x = torch.cat([e.cls_D.expand(len(x), 1, -1), x], 1)
        for block in e.blocks:
            hidden = block.mlp_bias.numel()
            fused = block.in_proj(block.in_norm(x)) + block.in_bias()
            mlp, q, k, v = fused.split([hidden, c.width, c.width, c.width], -1)
            q = block.q_norm(q.unflatten(-1, (c.heads, -1))).flatten(2)
            k = block.k_norm(k.unflatten(-1, (c.heads, -1))).flatten(2)
            update = block.attn_out_proj(self.attention(q, k, v, c.heads)) + block.mlp_out_proj(F.gelu(mlp))
            x = x + block.gamma * update
        return x

    def decode(self, x_BTD: torch.Tensor, keep_BV: torch.Tensor, restore_BL: torch.Tensor) -> torch.Tensor:
        """(B, C*N, P*P): mask tokens appended and unshuffled, all patches decoded."""
        g, d, N = self.decoder, self.d, self.c.n_patches
        visible = g.project(x_BTD[:, 1:])
        B, L = restore_BL.shape
        blank = g.mask_token_D.expand(B, L - visible.shape[1], -1)
        x = torch.cat([visible, blank], 1).gather(1, restore_BL[..., None].expand(-1, -1, d.width))
        C = L // N
        where = (g.channel_tokens_CD[:C, None] + g.positions_ND).flatten(0, 1)
        x = x + where
        context = x
        if d.context == "visible":
            context = x.gather(1, keep_BV[..., None].expand(-1, -1, d.width))
        for cross in g.cross:
            q = cross.q(cross.query_norm(x))
            k, v = cross.kv(cross.context_norm(context)).chunk(2, -1)
            z = cross.proj(self.attention(q, k, v, cross.heads))
            z = z + x if cross.residual else z
            x = z + cross.fc2(F.gelu(cross.fc1(cross.out_norm(z))))
        if d.depth:
            planes = x.unflatten(1, (C, N))
            outputs = []
            for c in range(C):
                y = planes[:, c]
                for block in g.stacks[c]:
                    q, k, v = block.qkv(block.norm1(y)).chunk(3, -1)
                    y = y + block.proj(self.attention(q, k, v, block.heads))
                    y = y + block.fc2(F.gelu(block.fc1(block.norm2(y))))
                outputs.append(y)
            x = torch.cat(outputs, 1)
        return g.heads[0](x)

    def forward(
        self, images_BCHW: torch.Tensor, noise_BL: torch.Tensor, ratio: float, alpha: float
    ) -> torch.Tensor:
        """Eq. 3: mean over masked patches."""
        P = self.c.patch
        target = patchify(images_BCHW, P)
        L = target.shape[1]
        kept = int(L * (1 - ratio))
        shuffle = noise_BL.argsort(1)
        restore = shuffle.argsort(1)
        mask = torch.ones_like(noise_BL)
        mask[:, :kept] = 0
        mask = mask.gather(1, restore)
        pred = self.decode(self.encode(target, shuffle[:, :kept]), shuffle[:, :kept], restore)
        mse = (pred - target).square().mean(-1)
        loss = (1 - alpha) * mse
        if alpha:
            magnitude = [torch.fft.fft2(x.unflatten(-1, (P, P))).abs() for x in (pred, target)]
            loss = loss + alpha * (magnitude[0] - magnitude[1]).abs().mean((-2, -1))
        return (loss * mask).sum() / mask.sum()


def train(
    model: PlainMAE,
    paths: list[list[str]],
    *,
    steps: int,
    batch_size: int,
    lr: Callable[[int], float],
    alpha: float,
    ratio: float,
    weight_decay: float,
    betas: tuple[float, float],
    seed: int,
    every: int,
    validate: Callable[[nn.Module], float],
) -> list[tuple[int, float, float]]:
    """(step, seconds since the start, validation loss) every `every` steps; validating is not timed."""
    named = list(model.named_parameters())
    decayed = [p for n, p in named if p.ndim >= 2 and "token" not in n]
    others = [p for n, p in named if not (p.ndim >= 2 and "token" not in n)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=betas)
    screen = Screen(paths, model.c.crop, steps * batch_size, seed)
    loader = DataLoader(screen, batch_size, num_workers=1, persistent_workers=True)
    curve, spent, clock = [], 0.0, time.perf_counter()
    model.train()
    for step, images in enumerate(loader):
        for group in optimizer.param_groups:
            group["lr"] = lr(step)
        noise = torch.rand(len(images), images.shape[1] * model.c.n_patches)
        loss = model(images, noise, ratio, alpha)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % every == 0 or step + 1 == steps:
            spent += time.perf_counter() - clock
            model.eval()
            curve.append((step + 1, spent, validate(model)))
            model.train()
            if not math.isfinite(curve[-1][2]):
                raise RuntimeError(f"the plain loop diverged at step {step + 1}")
            clock = time.perf_counter()
    return curve
