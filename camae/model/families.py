"""Model families: CA-MAE and the systems it is compared with, built, trained, saved and embedded by one code.

A family's module is imported when one of its models is built; it offers a model class, its configuration (with
`to_dict` and `from_dict`) and `preset(name, **changes)`. Preset names begin with the family's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import nn

from camae.dataloader.loader import CropLoader
from camae.dataloader.manifest import Manifest
from camae.dataloader.planes import PlaneBatch
from camae.errors import CamaeError

DEFAULT = "ca_mae"
# family -> (module, model class, configuration class); `preset` is in the configuration's module.
_FAMILIES = {
    DEFAULT: ("camae.model.ca_mae", "CAMAE", "camae.model.config", "ModelConfig"),
    "mae_vit": ("camae.baselines.mae_vit", "MAEViT", "camae.baselines.mae_vit", "ImageViTConfig"),
    "mu_net": ("camae.baselines.mu_net", "MUNet", "camae.baselines.mu_net", "MUNetConfig"),
    "wsl_vit": ("camae.baselines.wsl_vit", "ViTClassifier", "camae.baselines.wsl_vit", "ViTClassifierConfig"),
    "wsl_densenet": (
        "camae.baselines.wsl_densenet",
        "DenseNetClassifier",
        "camae.baselines.wsl_densenet",
        "DenseNetConfig",
    ),
    "imagenet": ("camae.baselines.imagenet", "ImageNetViT", "camae.baselines.imagenet", "ImageNetConfig"),
}
PERTURBATION = "Metadata_Perturbation"


class Config(Protocol):
    """What training and embedding read of a configuration. `patch` and `n_patches` size a plane's work."""

    name: str
    crop: int
    patch: int
    mask_ratio: float
    alpha: float
    standardization: str
    channels: tuple[str, ...]

    @property
    def n_patches(self) -> int: ...
    def to_dict(self) -> dict[str, Any]: ...


class Model(Protocol):
    """What the training loop and `embed_screen` ask of a model of any family (besides being an `nn.Module`).

    forward(batch, noise, *, mask_ratio, alpha, value_range, n_samples[, label_B]) returns scalars: "total", which
    is trained, and others, which are logged. noise: (K * n_patches(batch),) uniform.
    embed_batch(batch, pool, ...) returns one float32 vector per sample (CA-MAE pools its tokens instead).
    Models that reconstruct also have `reconstruct`; models trained on labels have `config.classes`; a model with
    wishes about which crops share a batch names its own `crop_loader`.
    """

    config: Config
    backends: Any
    encoder: nn.Module

    @property
    def device(self) -> torch.device: ...
    def n_patches(self, batch: PlaneBatch) -> int: ...
    def check_channels(self, names: Sequence[str]) -> None: ...
    def embed_batch(
        self, batch: PlaneBatch, pool: str, *, value_range: tuple[float, float] | None, interpolate: bool
    ) -> list[torch.Tensor]: ...


def family_of(name: str) -> str:
    """The family whose presets begin like `name`; CA-MAE where none does."""
    return next((f for f in sorted(_FAMILIES, key=len, reverse=True) if name.startswith(f)), DEFAULT)


def _parts(family: str) -> tuple[Any, Any, Any]:
    """(model class, configuration class, preset function)."""
    if family not in _FAMILIES:
        raise CamaeError(f"there is no model family {family!r}; families are {', '.join(_FAMILIES)}")
    module, model, config_module, config = _FAMILIES[family]
    configs = import_module(config_module)
    return getattr(import_module(module), model), getattr(configs, config), configs.preset


def build(name: str, **options: Any) -> Any:
    """An untrained model of a preset of any family, with fields of its configuration changed."""
    model, _, preset = _parts(family_of(name))
    return model(preset(name, **options))


def build_for(name: str, manifest: Manifest, **options: Any) -> Any:
    """As `build`, with the channels of a screen and, for models trained on labels, its perturbations as classes."""
    options = {"channels": tuple(manifest.channels)} | options
    _, config, _ = _parts(family_of(name))
    if "classes" in {f.name for f in fields(config)} and "classes" not in options:
        if PERTURBATION not in manifest.table:
            raise CamaeError(
                f"{name} learns to name perturbations, and the manifest has no column {PERTURBATION}"
            )
        options["classes"] = tuple(sorted(set(manifest.table[PERTURBATION]) - {""}))
    return build(name, **options)


def config_from(values: Mapping[str, Any]) -> Any:
    """The configuration that a model file stores, of whichever family."""
    values = dict(values)
    return _parts(values.pop("family", DEFAULT))[1].from_dict(values)


def model_class(config: Any) -> Any:
    """The class of models with this configuration: call it with the configuration for an untrained one."""
    return _parts(getattr(config, "family", DEFAULT))[0]


def crop_loader(model: Any) -> type[CropLoader]:
    """The loader that feeds the training of `model`."""
    return getattr(model, "crop_loader", CropLoader)


def labels(model: Any, manifest: Manifest, batch: PlaneBatch) -> dict[str, torch.Tensor]:
    """{"label_B": class of every sample, -1 where it has none} for models trained on labels, else nothing."""
    classes = getattr(model.config, "classes", ())
    if not classes:
        return {}
    index = {name: i for i, name in enumerate(classes)}
    names = manifest.table[PERTURBATION].to_numpy()[batch.rows_B]
    label_B = torch.tensor([index.get(n, -1) for n in names])
    return {"label_B": label_B.to(batch.planes_KHW.device, non_blocking=True)}
