"""Tile table of the attention kernels: query rows, key rows, warps and pipeline stages by architecture and head dim."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from camae.errors import CamaeError
from camae.kernels._device import architecture

HEAD_DIMS = (16, 32, 64, 128)


@dataclass(frozen=True)
class Tile:
    """Query rows, key rows, warps and pipeline stages of one kernel."""

    queries: int
    keys: int
    warps: int
    stages: int


@dataclass(frozen=True)
class AttentionConfig:
    """Tiles by kernel for one architecture and head dim.

    sm_90 at head dims 32 and 64: the fastest without spills of a sweep on an H100 (bench/tiles.py). The others by
    compile-ahead figures alone. short: of the forward pass over at most SHORT keys; None: as for longer ones.
    atomic: of the key kernel where it adds the gradient of q too (`triton_atomic`): the most blocks without spills.
    """

    forward: Tile
    queries: Tile
    keys: Tile
    short: Tile | None = None
    atomic: Tile = Tile(32, 64, 4, 2)


SHORT = 512


CONFIGS = {
    ("sm_80", 16): AttentionConfig(
        Tile(128, 64, 4, 3), queries=Tile(128, 64, 4, 2), keys=Tile(64, 128, 4, 2)
    ),
    ("sm_80", 32): AttentionConfig(Tile(64, 64, 4, 3), queries=Tile(64, 64, 4, 2), keys=Tile(32, 64, 4, 2)),
    ("sm_80", 64): AttentionConfig(Tile(64, 64, 4, 3), queries=Tile(64, 32, 4, 2), keys=Tile(32, 64, 4, 2)),
    ("sm_80", 128): AttentionConfig(
        Tile(64, 32, 8, 3), queries=Tile(64, 64, 8, 2), keys=Tile(32, 64, 8, 2), atomic=Tile(32, 64, 8, 2)
    ),
    ("sm_90", 16): AttentionConfig(
        Tile(128, 128, 4, 3), queries=Tile(128, 64, 4, 2), keys=Tile(64, 128, 8, 2)
    ),
    ("sm_90", 32): AttentionConfig(
        Tile(128, 32, 4, 4), queries=Tile(128, 32, 4, 4), keys=Tile(32, 128, 4, 3)
    ),
    ("sm_90", 64): AttentionConfig(
        Tile(128, 64, 8, 3), queries=Tile(128, 64, 8, 3), keys=Tile(32, 64, 4, 2), short=Tile(128, 32, 4, 4)
    ),
    ("sm_90", 128): AttentionConfig(
        Tile(128, 64, 8, 3), queries=Tile(64, 64, 8, 2), keys=Tile(64, 64, 8, 2), atomic=Tile(32, 64, 8, 2)
    ),
}
# With norms of q and k inside, where the tiles above would spill registers or leave one block on a multiprocessor.
NORMED = {
    ("sm_80", 32): replace(CONFIGS["sm_80", 32], queries=Tile(64, 32, 4, 2)),
    ("sm_90", 16): replace(CONFIGS["sm_90", 16], forward=Tile(128, 64, 4, 3)),
    ("sm_90", 64): AttentionConfig(
        Tile(64, 128, 4, 3), queries=Tile(64, 32, 4, 4), keys=Tile(64, 64, 4, 3), short=Tile(128, 32, 4, 4)
    ),
    ("sm_90", 128): replace(CONFIGS["sm_90", 128], forward=Tile(64, 64, 8, 3), keys=Tile(32, 64, 8, 2)),
}
_INTERPRETER = AttentionConfig(
    Tile(32, 16, 1, 1), queries=Tile(16, 32, 1, 1), keys=Tile(32, 16, 1, 1), atomic=Tile(16, 32, 1, 1)
)


def config_for(device: torch.device, head: int, dtype: torch.dtype, normed: bool = False) -> AttentionConfig:
    """The frozen configuration for a device, head dim and dtype, without or with norms of q and k.

    Raises CamaeError for float32 on CUDA: three tf32 products split every operand in two, and no tile at head dim 64
    then fits the registers.
    """
    arch = architecture(device)
    if arch == "interpreter":
        return _INTERPRETER
    if dtype not in (torch.bfloat16, torch.float16):
        raise CamaeError(
            f"varlen_attention: the kernel takes bfloat16 or float16, not {dtype}; use backend='reference'"
        )
    return frozen_config(arch, head, normed)


def frozen_config(arch: str, head: int, normed: bool) -> AttentionConfig:
    """The configuration of an architecture and head dim, without or with norms of q and k."""
    return NORMED.get((arch, head), CONFIGS[arch, head]) if normed else CONFIGS[arch, head]
