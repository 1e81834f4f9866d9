"""Model and training settings of the small systems that two CPU cores train in minutes, and the types of settings."""

from __future__ import annotations

from typing import TypedDict


class DecoderSettings(TypedDict, total=False):
    """Fields of `camae.model.config.DecoderConfig` that the systems change."""

    width: int
    depth: int
    heads: int
    cross_heads: int
    cross_attention: str
    context: str
    cross_residual: bool
    local_start: bool


class ModelSettings(TypedDict, total=False):
    """Fields of a model's configuration that the systems change. crop: pixels."""

    crop: int
    width: int
    depth: int
    heads: int
    drop_path: float
    layer_scale: float
    decoder: DecoderSettings


class TrainingSettings(TypedDict, total=False):
    """Settings of `camae.train` that the demo and the paper's systems set; see `camae.training.config`."""

    recipe: str
    steps: int
    batch_size: int
    micro_batch: int
    optimizer: str
    lr: float
    alpha: float
    val: str
    checkpoint_every: int


CROP = 128
ADAMW: TrainingSettings = {"optimizer": "adamw", "lr": 3e-3}
# An encoder of 0.47 M parameters. Everything not named is the preset's, LayerScale 1e-4 included.
SMALL_VIT: ModelSettings = {"crop": CROP, "width": 96, "depth": 4, "heads": 3, "drop_path": 0.0}
# The paper's decoder of a standard MAE: self-attention, which first has to find where a mask token is (a validation
# MSE of .99 after the 160 steps of the smallest size).
SMALL_PAPER_DECODER: ModelSettings = {
    **SMALL_VIT,
    "decoder": {"width": 64, "depth": 2, "heads": 4, "cross_attention": "none"},
}
_LOCAL_DECODER: DecoderSettings = {
    "width": 64,
    "depth": 1,
    "heads": 4,
    "cross_attention": "shared",
    "cross_heads": 4,
    "context": "visible",
    "cross_residual": True,
    "local_start": True,
}
SMALL_MAE: ModelSettings = {**SMALL_VIT, "decoder": _LOCAL_DECODER}
SMALL_CA_MAE: ModelSettings = {**SMALL_VIT, "decoder": _LOCAL_DECODER}
