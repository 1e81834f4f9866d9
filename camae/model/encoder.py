"""The encoder: shared tokenizer, the same positions for every channel, class token, transformer blocks."""

from __future__ import annotations

import math

import torch
from torch import nn

from camae.dataloader.plane_batch import PlaneBatch
from camae.errors import CamaeError
from camae.kernels.tokenize import tokenize
from camae.model.blocks import ParallelBlock, Sequences, SequentialBlock, initialize_linears, run_block
from camae.model.config import ModelConfig
from camae.model.positions import sincos_positions
from camae.model.token_layout import TokenLayout


class Encoder(nn.Module):
    """CA-MAE encoder (paper, section 4.2.2). Channel-agnostic: it never sees which channel a plane shows."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.config = c
        self.recompute = 0  # every n-th block computes its activations again in the backward pass; 0: none
        self.patch_weight_DP2 = nn.Parameter(torch.empty(c.width, c.patch**2))
        self.patch_bias_D = nn.Parameter(torch.zeros(c.width))
        self.cls_D = nn.Parameter(torch.empty(c.width))
        rates = [c.drop_path * i / max(1, c.depth - 1) for i in range(c.depth)]
        hidden = c.width * c.mlp_ratio
        self.blocks = nn.ModuleList(
            ParallelBlock(c, rate)
            if c.block == "parallel"
            else SequentialBlock(c.width, c.heads, hidden, c.norm_eps, rate)
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
        """He et al. initialization: xavier-uniform projections, class token std 0.02."""
        initialize_linears(self)
        nn.init.xavier_uniform_(self.patch_weight_DP2)
        nn.init.normal_(self.cls_D, std=0.02)

    def positions(self, height: int, width: int, interpolate: bool) -> torch.Tensor:
        """(N, D) positions for planes of `height` x `width` px.

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
                "(tile='cover') or ask for interpolated positions (tile='interpolate')"
            )
        if c.stored_positions:
            raise CamaeError("this model's stored position tables cannot be interpolated; tile the images")
        grid_h, grid_w = height // c.patch, width // c.patch
        scale = c.grid / math.sqrt(grid_h * grid_w)
        table = sincos_positions(grid_h, grid_w, c.width, scale=scale)
        return table.to(self.positions_ND)

    def forward(
        self,
        batch: PlaneBatch,
        layout: TokenLayout,
        *,
        eps: float,
        interpolate: bool = False,
        tokenize_backend: str | None = None,
        attention_backend: str | None = None,
        layers: tuple[int, ...] = (),
        statistics: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor | list[torch.Tensor]:
        """Tokens (T, D) of the last block, packed as `layout` says; with `layers`, those blocks' outputs."""
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
            backend=tokenize_backend,
        )
        if self.config.stored_positions:
            tokens_TD = tokens_TD.index_add(
                0, layout.patch_rows, self._stored_VD(batch, layout).to(tokens_TD.dtype)
            )
        sequences = Sequences(layout.cu_seqlens, layout.lengths, layout.sample_T)
        outputs = []
        for i, block in enumerate(self.blocks):
            recompute = self.recompute > 0 and i % self.recompute == 0
            tokens_TD = run_block(block, recompute, tokens_TD, sequences, attention_backend)
            if i in layers:
                outputs.append(tokens_TD)
        return outputs if layers else self.norm(tokens_TD)

    def _stored_VD(self, batch: PlaneBatch, layout: TokenLayout) -> torch.Tensor:
        """(V, D) stored positions of the visible patches: the table of a plane's place in its sample."""
        most, tables = max(layout.planes_per_sample), self.config.stored_positions
        if most > tables:
            raise CamaeError(f"an image has {most} channels, but the model has positions for {tables}")
        place_K = torch.cat([torch.arange(planes) for planes in layout.planes_per_sample])
        place_K = place_K.to(layout.device, non_blocking=True)
        plane_V, patch_V = layout.kept // layout.n_patches, layout.kept % layout.n_patches
        return self.stored_positions_CND[place_K[plane_V], patch_V]
