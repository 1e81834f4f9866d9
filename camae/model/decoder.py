"""The decoders: one stack per channel name, over all tokens of a plane, visible and masked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from camae.errors import CamaeError
from camae.model.blocks import CrossAttention, Sequences, SequentialBlock, initialize_linears
from camae.model.config import ModelConfig
from camae.model.layout import TokenLayout, cumulative
from camae.model.positions import sincos_positions


class Decoder(nn.Module):
    """Separate decoders per channel (paper, Figure 4; MultiMAE), with shared parts as configured.

    Input: encoder tokens; output: per-patch features (K*N, width) from which `head` predicts P*P pixels of the
    self-standardised plane.
    """

    def __init__(self, c: ModelConfig):
        super().__init__()
        d = c.decoder
        self.config, self.channels, self.pixels = d, c.channels, c.patch**2
        self.project = nn.Linear(c.width, d.width)
        self.mask_token_D = nn.Parameter(torch.empty(d.width))
        self.channel_tokens_CD = nn.Parameter(torch.empty(len(c.channels), d.width))
        self.positions_ND: torch.Tensor
        self.register_buffer("positions_ND", sincos_positions(c.grid, c.grid, d.width), persistent=False)
        n_cross = {"shared": 1, "per_channel": len(c.channels), "none": 0}[d.cross_attention]
        n_heads = len(c.channels) if d.cross_attention == "per_channel" else 1
        hidden = 4 * d.width
        self.cross = nn.ModuleList(
            CrossAttention(d.width, d.cross_heads, hidden, d.norm_eps, d.cross_residual)
            for _ in range(n_cross)
        )
        self.stacks = nn.ModuleList(
            nn.ModuleList(SequentialBlock(d.width, d.heads, hidden, d.norm_eps) for _ in range(d.depth))
            for _ in c.channels
        )
        self.heads = nn.ModuleList(nn.Linear(d.width, self.pixels) for _ in range(n_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform projections (He et al.); heads, mask and channel tokens std 0.02."""
        initialize_linears(self)
        for head in self.heads:  # first predictions near the mean of a standardised plane: a loss near 1
            nn.init.trunc_normal_(head.weight, std=0.02)  # type: ignore[arg-type]
        nn.init.normal_(self.mask_token_D, std=0.02)
        nn.init.normal_(self.channel_tokens_CD, std=0.02)

    def channel_indices(self, names_K: Sequence[str]) -> list[int]:
        """Decoder of every plane. Raises CamaeError for a channel the model has no decoder for."""
        index = {name: i for i, name in enumerate(self.channels)}
        if unknown := [n for n in dict.fromkeys(names_K) if n not in index]:
            raise CamaeError(
                f"the model has no decoder for channel {', '.join(map(repr, unknown))}; it has decoders for "
                f"{', '.join(self.channels) or 'none'} (embedding needs no decoder, reconstruction and loss do)"
            )
        return [index[name] for name in names_K]

    def forward(
        self, tokens_TD: torch.Tensor, layout: TokenLayout, names_K: list[str], backend: str | None
    ) -> torch.Tensor:
        """Features (K*N, width) of every patch of every plane."""
        N, K = layout.n_patches, layout.n_planes
        channel_K = torch.tensor(self.channel_indices(names_K), device=tokens_TD.device)
        visible_VD = self.project(tokens_TD[layout.patch_rows])
        all_LD = self.mask_token_D.to(visible_VD.dtype).expand(K * N, -1)
        all_LD = torch.index_copy(all_LD.contiguous(), 0, layout.kept, visible_VD)
        where_LD = self.channel_tokens_CD[channel_K][:, None] + self.positions_ND
        all_LD = all_LD + where_LD.reshape(K * N, -1).to(all_LD.dtype)
        if self.config.cross_attention != "none":
            all_LD = self._cross(all_LD, layout, channel_K, backend)
        return self._stacks(all_LD.unflatten(0, (K, N)), channel_K, backend).flatten(0, 1)

    def predict(self, features_MD: torch.Tensor, channel_M: torch.Tensor) -> torch.Tensor:
        """Pixels (M, P*P) from features, by the shared head or each channel's own."""
        if len(self.heads) == 1:
            return self.heads[0](features_MD)
        out = features_MD.new_empty(len(features_MD), self.pixels)
        for c in range(len(self.heads)):
            rows = (channel_M == c).nonzero().squeeze(1)
            out = out.index_copy(0, rows, self.heads[c](features_MD[rows]).to(out.dtype))
        return out

    def _cross(
        self, all_LD: torch.Tensor, layout: TokenLayout, channel_K: torch.Tensor, backend: str | None
    ) -> torch.Tensor:
        """Cross-attention from each plane's tokens to its sample's context."""
        N, device = layout.n_patches, layout.device
        totals = tuple(c * N for c in layout.planes_per_sample)
        visible_only = self.config.context == "visible"
        context_SD = all_LD[layout.kept] if visible_only else all_LD
        lengths = layout.kept_per_sample if visible_only else totals
        keys = Sequences(cumulative(lengths, device), lengths)
        if len(self.cross) == 1:
            queries = Sequences(cumulative(totals, device), totals)
            return self.cross[0](all_LD, context_SD, queries, keys, backend)
        sample_K = torch.repeat_interleave(
            torch.arange(layout.n_samples), torch.tensor(layout.planes_per_sample)
        )
        out_KND = all_LD.unflatten(0, (-1, N))
        result = torch.zeros_like(out_KND)
        for c, cross in enumerate(self.cross):
            planes = (channel_K == c).nonzero().squeeze(1)
            if len(planes) == 0:
                continue
            counts = torch.bincount(sample_K[planes.cpu()], minlength=layout.n_samples)
            per_sample = tuple((counts * N).tolist())
            queries = Sequences(cumulative(per_sample, device), per_sample)
            z = cross(out_KND[planes].flatten(0, 1), context_SD, queries, keys, backend)
            result = result.index_copy(0, planes, z.unflatten(0, (-1, N)).to(result.dtype))
        return result.flatten(0, 1)

    def _stacks(self, planes_KND: torch.Tensor, channel_K: torch.Tensor, backend: str | None) -> torch.Tensor:
        """Each plane through its own channel's blocks: self-attention within the plane."""
        if self.config.depth == 0:
            return planes_KND
        N = planes_KND.shape[1]
        result = torch.zeros_like(planes_KND)
        for c, stack in enumerate(self.stacks):
            planes = (channel_K == c).nonzero().squeeze(1)
            if len(planes) == 0:
                continue
            x = planes_KND[planes].flatten(0, 1)
            lengths = (N,) * len(planes)
            sequences = Sequences(cumulative(lengths, x.device), lengths)
            for block in stack:  # type: ignore[attr-defined]
                x = block(x, sequences, backend)
            result = result.index_copy(0, planes, x.unflatten(0, (-1, N)).to(result.dtype))
        return result
