"""Resolved settings of every trained system: what `camae paper` prints before training starts."""

from __future__ import annotations

from collections.abc import Sequence

from camae.dataloader.manifest import Manifest
from camae.model import registry
from camae.model.config import DecoderConfig
from camae.model.interface import LabelConfig
from camae.reproduction.model_settings import TrainingSettings
from camae.reproduction.paper.paper_systems import System
from camae.training.config import resolve

HEADER = (
    "Model backbone",
    "preset",
    "crop",
    "patch",
    "mask ratio",
    "decoder",
    "drop path",
    "Fourier loss",
    "optimizer",
    "learning rate",
    "weight decay",
    "schedule",
    "batch",
    "steps",
    "embedding",
)
NONE = "none"


def settings_rows(
    systems: Sequence[System], recipe: TrainingSettings, manifest: Manifest
) -> list[dict[str, str]]:
    """One row of `HEADER` for every system that is trained, as `camae.train` resolves it.

    Raises CamaeError for settings that no training takes, and for labels that the manifest lacks.
    """
    return [settings_row(system, recipe, manifest) for system in systems if system.trains]


def settings_row(system: System, recipe: TrainingSettings, manifest: Manifest) -> dict[str, str]:
    """The resolved settings of one system. recipe: training settings of every system."""
    training = resolve(
        None, model=system.preset, model_options=dict(system.options), **(recipe | system.recipe)
    )
    model = registry.config_for(system.preset, manifest, **training.model_options)
    labels = isinstance(model, LabelConfig)
    ratio = training.mask_ratio or getattr(model, "mask_ratio", 0.0)
    alpha = getattr(model, "alpha", 0.0) if training.alpha is None else training.alpha
    cells = (
        system.backbone,
        system.preset,
        f"{model.crop} px",
        f"{model.patch} px",
        NONE if labels else f"{ratio:g}",
        NONE if labels else _decoder(getattr(model, "decoder", None)),
        f"{getattr(model, 'drop_path', 0.0):g}",
        NONE if labels or not alpha else f"alpha {alpha:g}",
        training.optimizer,
        f"{training.peak_lr:g}",
        f"{training.weight_decay:g}",
        training.schedule,
        f"{training.batch_size:,} crops",
        f"{training.steps:,}",
        system.pool,
    )
    return dict(zip(HEADER, cells, strict=True))


_KINDS = {
    "per_channel": "one for each channel",
    "shared": "a stack for each channel, shared cross-attention",
    "none": "self-attention only",
}


def _decoder(decoder: DecoderConfig | None) -> str:
    """The decoder in words: how it attends, blocks and width."""
    if decoder is None:
        return "mirrors the encoder"
    return f"{_KINDS[decoder.cross_attention]}, {decoder.depth} x {decoder.width}"


def settings_lines(rows: Sequence[dict[str, str]]) -> list[str]:
    """One line for every row: the model, and each setting by name."""
    return [
        f"{row['Model backbone']}: "
        + ", ".join(f"{name} {value}" for name, value in row.items() if name != "Model backbone")
        for row in rows
    ]
