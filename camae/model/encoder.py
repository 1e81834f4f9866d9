"""Encoders: patch embedding, sine-cosine positions, class token, transformer blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import cast

import torch
from torch import nn

from camae.dataloader.plane_batch import PlaneBatch
from camae.errors import CamaeError
from camae.kernels.tokenize import tokenize
from camae.model.activation_checkpointing import run_block
from camae.model.backends import BackendModule, Backends
from camae.model.blocks import (
    ParallelBlock,
    ResidualBlock,
    Sequences,
    SequentialBlock,
    Stream,
    initialize_linears,
)
from camae.model.config import ModelConfig
from camae.model.positions import sincos_positions
from camae.model.token_layout import TokenLayout

Statistics = tuple[torch.Tensor, torch.Tensor]  # mean and variance of planes, (K,) float64 each


Substitutes = Mapping[nn.Module, Sequence[ResidualBlock]]  # encoder -> what runs instead of its blocks
_substitutes: ContextVar[Substitutes | None] = ContextVar("_substitutes", default=None)


@contextmanager
def substituted_blocks(substitutes: Substitutes) -> Iterator[None]:
    """Context in which passes of this thread run other blocks, made from the same weights, for inference.

    The encoders themselves stay as they are: other threads may train or read them meanwhile.
    """
    token = _substitutes.set(substitutes)
    try:
        yield
    finally:
        _substitutes.reset(token)


class TransformerEncoder(BackendModule):
    """Base class of encoders: weights, positions and blocks, without the patch embedding of a batch.

    pixels: values of a patch that is embedded. recompute: see `activation_checkpointing.set_recompute`.
    """

    def __init__(self, c: ModelConfig, pixels: int, backends: Backends | None = None):
        super().__init__(backends)
        self.config = c
        self.recompute = 0
        self.patch_weight_DP2 = nn.Parameter(torch.empty(c.width, pixels))
        self.patch_bias_D = nn.Parameter(torch.zeros(c.width))
        self.cls_D = nn.Parameter(torch.empty(c.width))
        rates = [c.drop_path * i / max(1, c.depth - 1) for i in range(c.depth)]
        hidden = c.width * c.mlp_ratio
        self.blocks = nn.ModuleList(
            ParallelBlock(c, rate, self.backends)
            if c.block == "parallel"
            else SequentialBlock(c.width, c.heads, hidden, c.norm_eps, rate, self.backends)
            for rate in rates
        )
        # The released parallel form has no norm on the token path.
        self.norm = nn.Identity() if c.block == "parallel" else nn.LayerNorm(c.width, eps=c.norm_eps)
        self.positions_ND: torch.Tensor
        self.register_buffer("positions_ND", sincos_positions(c.grid, c.grid, c.width), persistent=False)
        self.stored_positions_CND: torch.Tensor
        if c.stored_positions:
            table_CND = torch.zeros(c.stored_positions, c.n_patches, c.width)
            self.register_buffer("stored_positions_CND", table_CND)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize as He et al.: xavier-uniform projections, class token std 0.02."""
        initialize_linears(self)
        nn.init.xavier_uniform_(self.patch_weight_DP2)
        nn.init.normal_(self.cls_D, std=0.02)

    def positions(self, height: int, width: int, interpolate: bool) -> torch.Tensor:
        """Position embeddings (N, D) for planes of `height` x `width` px.

        Raises CamaeError for a size that is not the model's crop unless `interpolate`, and for one that the
        patch does not divide.
        """
        c = self.config
        if (height, width) == (c.crop, c.crop):
            return torch.zeros_like(self.positions_ND) if c.stored_positions else self.positions_ND
        if height % c.patch or width % c.patch:
            raise CamaeError(f"planes of {height} x {width} px are not a multiple of the patch, {c.patch} px")
        if not interpolate:
            raise CamaeError(
                f"planes are {height} x {width} px but the model's crop is {c.crop} x {c.crop} px; tile them "
                "(tiles='cover') or ask for interpolated positions (tiles='interpolate')"
            )
        if c.stored_positions:
            raise CamaeError("this model's stored position tables cannot be interpolated; tile the images")
        grid_h, grid_w = height // c.patch, width // c.patch
        scale = c.grid / math.sqrt(grid_h * grid_w)
        table = sincos_positions(grid_h, grid_w, c.width, scale=scale)
        return table.to(self.positions_ND)

    def run_blocks(
        self, tokens_TD: torch.Tensor, layout: TokenLayout, layers: tuple[int, ...] = ()
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Tokens (T, D) after the last block, without the last norm, and after the blocks numbered `layers`."""
        sequences = Sequences(layout.cu_seqlens, layout.lengths, layout.sample_T)
        outputs, stream = [], Stream(tokens_TD)
        blocks = (_substitutes.get() or {}).get(self) or cast(Sequence[ResidualBlock], self.blocks)
        for i, block in enumerate(blocks):
            recompute = self.recompute > 0 and i % self.recompute == 0
            stream = run_block(block, recompute, stream, sequences)
            if i in layers or i + 1 == len(blocks):
                stream = Stream(block.value(stream))
            if i in layers:
                outputs.append(stream.tokens_TD)
        return stream.tokens_TD, outputs


class Encoder(TransformerEncoder):
    """CA-MAE encoder (paper, section 4.2.2): one patch embedding and the same positions for every channel.

    Channel-agnostic: it never sees which channel a plane shows.
    """

    def __init__(self, c: ModelConfig, backends: Backends | None = None):
        super().__init__(c, c.patch**2, backends)

    def forward(
        self,
        batch: PlaneBatch,
        layout: TokenLayout,
        *,
        eps: float,
        interpolate: bool = False,
        statistics: Statistics | None = None,
    ) -> torch.Tensor:
        """Tokens (T, D) of the last block, packed as `layout` says.

        eps: of the self-standardization. statistics: of the planes, where the caller has them.
        Raises CamaeError as `positions`.
        """
        tokens_TD = self.embed(batch, layout, eps, interpolate, statistics)
        return self.norm(self.run_blocks(tokens_TD, layout)[0])

    def encode_layers(
        self,
        batch: PlaneBatch,
        layout: TokenLayout,
        layers: tuple[int, ...],
        *,
        eps: float,
        interpolate: bool = False,
    ) -> list[torch.Tensor]:
        """Tokens (T, D) after the blocks numbered `layers`, in ascending order, without the last norm."""
        return self.run_blocks(self.embed(batch, layout, eps, interpolate), layout, layers)[1]

    def embed(
        self,
        batch: PlaneBatch,
        layout: TokenLayout,
        eps: float,
        interpolate: bool,
        statistics: Statistics | None = None,
    ) -> torch.Tensor:
        """Patch embeddings with positions, and class tokens, (T, D)."""
        positions_ND = self.positions(batch.planes_KHW.shape[1], batch.planes_KHW.shape[2], interpolate)
        tokens_TD = tokenize(
            batch.planes_KHW,
            batch.sample_K,
            layout.keep_index,
            self.patch_weight_DP2,
            self.patch_bias_D,
            positions_ND,
            self.cls_D,
            eps=eps,
            n_samples=layout.n_samples,
            statistics=statistics,
            backend=self.backends.tokenize,
        )
        if self.config.stored_positions:
            stored_VD = self._stored_positions_VD(batch, layout).to(tokens_TD.dtype)
            tokens_TD = tokens_TD.index_add(0, layout.patch_rows, stored_VD)
        return tokens_TD

    def _stored_positions_VD(self, batch: PlaneBatch, layout: TokenLayout) -> torch.Tensor:
        """Stored positions (V, D) of the visible patches: from the table of a plane's place in its sample."""
        most, tables = max(layout.planes_per_sample), self.config.stored_positions
        if most > tables:
            raise CamaeError(f"an image has {most} channels, but the model has positions for {tables}")
        place_K = torch.cat([torch.arange(planes) for planes in layout.planes_per_sample])
        place_K = place_K.to(layout.device, non_blocking=True)
        plane_V, patch_V = layout.kept // layout.n_patches, layout.kept % layout.n_patches
        return self.stored_positions_CND[place_K[plane_V], patch_V]
