"""Decoders: separate per channel, the released form, a small one, and one of cross-attention alone.

Two rewrites of the released form are exact and always on. Keys and values of the shared cross-attention are
computed once, not once per channel. Projections at masked positions (queries, keys, values) depend on channel
and position alone, so they are computed once per step for C*N rows, not for every sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import nn

from camae.errors import CamaeError
from camae.kernels._autograd import Context, Gradients
from camae.model.activation_checkpointing import run_block, run_checkpointed
from camae.model.backends import BackendModule, Backends
from camae.model.blocks import CrossAttention, Sequences, SequentialBlock, Stream, initialize_linears
from camae.model.config import ModelConfig
from camae.model.local_start import start_local
from camae.model.positions import sincos_positions
from camae.model.token_layout import Part, TokenLayout, cumulative


@dataclass(frozen=True)
class DecoderTokens:
    """Decoder input: mask tokens of the channels present, the one of each patch, and the visible tokens.

    blank_SD: (S, width), S = channels present * N: mask token + channel + position.
    slot_L: (K*N,) row of blank_SD of every patch. visible_VD, kept_V: visible tokens and their flat indices.
    """

    blank_SD: torch.Tensor
    slot_L: torch.Tensor
    visible_VD: torch.Tensor
    kept_V: torch.Tensor

    def project(self, function: Callable[[torch.Tensor], torch.Tensor]) -> DecoderTokens:
        """Apply a function of single tokens to each distinct token once."""
        return replace(self, blank_SD=function(self.blank_SD), visible_VD=function(self.visible_VD))

    def assembled(self) -> torch.Tensor:
        """All tokens (K*N, width): visible tokens where visible, mask tokens elsewhere."""
        blank_LD = self.blank_SD.index_select(0, self.slot_L)
        return blank_LD.index_copy(0, self.kept_V, self.visible_VD)


class Permute(torch.autograd.Function):
    """Permutation of the first dim: x[order_K], its gradient by the inverse permutation, a copy instead of sums."""

    @staticmethod
    def forward(
        ctx: Context, x_K: torch.Tensor, order_K: torch.Tensor, inverse_K: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(inverse_K)
        return x_K.index_select(0, order_K)

    @staticmethod
    def backward(ctx: Context, *grads: torch.Tensor) -> Gradients:
        (inverse_K,) = ctx.saved_tensors
        return grads[0].index_select(0, inverse_K), None, None


class PlaneGroups:
    """Planes of a batch grouped by decoder.

    decoder_K: decoder of each plane, on the host.
    """

    def __init__(self, decoder_K: list[int], device: torch.device):
        self.present = sorted(set(decoder_K))
        local = {c: i for i, c in enumerate(self.present)}
        by_decoder: list[list[int]] = [[] for _ in self.present]
        for k, c in enumerate(decoder_K):
            by_decoder[local[c]].append(k)
        self.lists = by_decoder

        def on_device(values: list[int]) -> torch.Tensor:
            return torch.tensor(values).to(device, non_blocking=True)

        self.local_K = on_device([local[c] for c in decoder_K])
        self.present_C = on_device(self.present)
        order = [k for planes in by_decoder for k in planes]
        self.order_K = on_device(order)
        self.inverse_K = on_device(sorted(range(len(order)), key=order.__getitem__))

    def apply(self, function: Callable[..., torch.Tensor], planes_KND: torch.Tensor) -> torch.Tensor:
        """Apply function(decoder, (planes, N, D), planes' numbers) to every group; results in the planes' order."""
        if len(self.present) == 1:
            return function(self.present[0], planes_KND, self.lists[0])
        by_decoder_KND = Permute.apply(planes_KND, self.order_K, self.inverse_K)
        groups = by_decoder_KND.split([len(numbers) for numbers in self.lists])
        parts = [
            function(c, group, numbers)
            for c, group, numbers in zip(self.present, groups, self.lists, strict=True)
        ]
        return Permute.apply(torch.cat(parts), self.inverse_K, self.order_K)


class Decoder(BackendModule):
    """Decoders of all channels (paper, Figure 4; MultiMAE), with shared parts as configured.

    Input: encoder tokens. Output: P*P pixels of the self-standardized plane for the patches asked for.
    """

    def __init__(self, c: ModelConfig, backends: Backends | None = None):
        super().__init__(backends)
        d = c.decoder
        self.config, self.channels, self.pixels = d, c.channels, c.patch**2
        self.project = nn.Linear(c.width, d.width)
        self.mask_token_D = nn.Parameter(torch.empty(d.width))
        self.channel_tokens_CD = nn.Parameter(torch.empty(len(c.channels), d.width))
        self.positions_ND: torch.Tensor
        self.register_buffer("positions_ND", sincos_positions(c.grid, c.grid, d.width), persistent=False)
        self.stored_positions_CND: torch.Tensor
        if c.stored_positions:
            table_CND = torch.zeros(len(c.channels), c.n_patches, d.width)
            self.register_buffer("stored_positions_CND", table_CND)
        self.stored_positions = c.stored_positions > 0
        self.recompute = 0  # above 0: all blocks are checkpointed
        n_cross = {"shared": d.cross_depth, "per_channel": len(c.channels), "none": 0}[d.cross_attention]
        n_heads = len(c.channels) if d.cross_attention == "per_channel" else 1
        hidden = 4 * d.width
        self.cross = nn.ModuleList(
            CrossAttention(d.width, d.cross_heads, hidden, d.norm_eps, d.cross_residual, self.backends)
            for _ in range(n_cross)
        )
        self.stacks = nn.ModuleList(
            nn.ModuleList(
                SequentialBlock(d.width, d.heads, hidden, d.norm_eps, backends=self.backends)
                for _ in range(d.depth)
            )
            for _ in c.channels
        )
        self.heads = nn.ModuleList(nn.Linear(d.width, self.pixels) for _ in range(n_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize: xavier-uniform projections (He et al.); heads, mask and channel tokens std 0.02."""
        initialize_linears(self)
        for head in self.heads:  # first predictions near the mean of a standardized plane: a loss near 1
            nn.init.trunc_normal_(cast(nn.Linear, head).weight, std=0.02)
        nn.init.normal_(self.mask_token_D, std=0.02)
        nn.init.normal_(self.channel_tokens_CD, std=0.02)
        if self.config.local_start:
            start_local(self.project, self.channel_tokens_CD, cast(list[CrossAttention], list(self.cross)))

    def channel_indices(self, names_K: Sequence[str]) -> list[int]:
        """Decoder number of every plane. Raises CamaeError for a channel without a decoder."""
        index = {name: i for i, name in enumerate(self.channels)}
        if unknown := [n for n in dict.fromkeys(names_K) if n not in index]:
            raise CamaeError(
                f"the model has no decoder for channel {', '.join(map(repr, unknown))}; it has decoders for "
                f"{', '.join(self.channels) or 'none'} (embedding needs no decoder, reconstruction and loss do)"
            )
        return [index[name] for name in names_K]

    def forward(
        self,
        tokens_TD: torch.Tensor,
        layout: TokenLayout,
        names_K: Sequence[str],
        part: Part | None = None,
    ) -> torch.Tensor:
        """Pixels (M, P*P) of the masked patches `part`, or of all K*N patches without it.

        With `depth` 0 only those patches are decoded; a channel's stack needs all patches of its planes.
        """
        planes = PlaneGroups(self.channel_indices(names_K), layout.device)
        query = self._query(tokens_TD, layout, planes)
        if self.config.depth == 0:
            return self.heads[0](self._cross_only(query, layout, part or layout.all_patches, part))
        N = layout.n_patches
        x_KND = self._cross(query, layout, planes).unflatten(0, (-1, N))
        x_KND = planes.apply(lambda c, x, _: self._stack(c, x), x_KND)
        if len(self.heads) > 1:
            x_KND = planes.apply(lambda c, x, _: self.heads[c](x), x_KND)
        x_MD = x_KND.flatten(0, 1)
        if part is not None:
            x_MD = x_MD.index_select(0, part.index_M)
        return x_MD if len(self.heads) > 1 else self.heads[0](x_MD)

    def _query(self, tokens_TD: torch.Tensor, layout: TokenLayout, planes: PlaneGroups) -> DecoderTokens:
        """Projected encoder tokens and mask tokens, with channel and position added."""
        N = layout.n_patches
        visible_VD = self.project(tokens_TD.index_select(0, layout.patch_rows))
        channels_CD = self.channel_tokens_CD.index_select(0, planes.present_C)
        positions = self.positions_ND
        if self.stored_positions:
            positions = self.stored_positions_CND.index_select(0, planes.present_C)
        where_SD = (channels_CD[:, None] + positions).flatten(0, 1).to(visible_VD.dtype)
        patch_N = torch.arange(N, device=layout.device)
        slot_L = (planes.local_K[:, None] * N + patch_N).flatten()
        visible_VD = visible_VD + where_SD.index_select(0, slot_L[layout.kept])
        return DecoderTokens(where_SD + self.mask_token_D.to(where_SD.dtype), slot_L, visible_VD, layout.kept)

    def _context(
        self, cross: CrossAttention, query: DecoderTokens, layout: TokenLayout
    ) -> tuple[torch.Tensor, Sequences]:
        """Keys and values that a cross-attention looks at, and where each sample's begin."""
        if self.config.context == "visible":
            lengths, kv_SD = layout.kept_per_sample, cross.keys_values(query.visible_VD)
        else:
            lengths, kv_SD = layout.totals, query.project(cross.keys_values).assembled()
        return kv_SD, Sequences(cumulative(lengths, layout.device), lengths)

    def _cross_only(
        self, query: DecoderTokens, layout: TokenLayout, wanted: Part, part: Part | None
    ) -> torch.Tensor:
        """Features (M, width) of the patches wanted, through the cross-attention blocks alone."""
        queries = Sequences(cumulative(wanted.per_sample, layout.device), wanted.per_sample)

        def rows(function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
            if part is None:
                return query.project(function).assembled()
            return function(query.blank_SD).index_select(0, query.slot_L[part.index_M])

        x_MD = rows(lambda x: x)
        for i, module in enumerate(self.cross):
            cross = cast(CrossAttention, module)
            # The first block's queries are mask tokens: projected once per step.
            q_MD = rows(cross.query) if i == 0 else cross.query(x_MD)
            kv_SD, keys = self._context(cross, query, layout)
            x_MD = self._run_cross(cross, x_MD, q_MD, kv_SD, queries, keys)
        return x_MD

    def _run_cross(self, cross: CrossAttention, *inputs: torch.Tensor | Sequences) -> torch.Tensor:
        run = self.recompute > 0 and torch.is_grad_enabled()
        return run_checkpointed(cross, *inputs) if run else cross(*inputs)

    def _cross(self, query: DecoderTokens, layout: TokenLayout, planes: PlaneGroups) -> torch.Tensor:
        """Features (K*N, width): every patch looks at the context of its sample."""
        if self.config.cross_attention == "none":
            return query.assembled()
        if self.config.cross_attention == "shared":
            return self._cross_only(query, layout, layout.all_patches, None)
        N, device = layout.n_patches, layout.device
        sample_K = [b for b, count in enumerate(layout.planes_per_sample) for _ in range(count)]

        def one_channel(c: int, x_KND: torch.Tensor, numbers: list[int]) -> torch.Tensor:
            cross = cast(CrossAttention, self.cross[c])
            count = Counter(sample_K[k] for k in numbers)
            lengths = tuple(count[b] * N for b in range(layout.n_samples))
            queries = Sequences(cumulative(lengths, device), lengths)
            kv_SD, keys = self._context(cross, query, layout)
            x_TD = x_KND.flatten(0, 1)
            out = self._run_cross(cross, x_TD, cross.query(x_TD), kv_SD, queries, keys)
            return out.unflatten(0, (-1, N))

        return planes.apply(one_channel, query.assembled().unflatten(0, (-1, N))).flatten(0, 1)

    def _stack(self, c: int, x_KND: torch.Tensor) -> torch.Tensor:
        """Planes of one channel through its own blocks: self-attention within the plane."""
        K, N = x_KND.shape[:2]
        sequences = Sequences(cumulative((N,) * K, x_KND.device), (N,) * K)
        stream = Stream(x_KND.flatten(0, 1))
        for block in cast(list[SequentialBlock], self.stacks[c]):
            stream = run_block(block, self.recompute > 0, stream, sequences)
        return block.value(stream).unflatten(0, (K, N))
