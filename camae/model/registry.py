"""Registry of model families: a family joins by `register`, called in a module that an entry point names.

Entry points of the group `camae.model_families` map a family's name to its module, which is imported when one of
its models is built or loaded. Preset names begin with the family's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol

import torch
from torch import nn

from camae.dataloader.loader import CropLoader
from camae.dataloader.manifest import Manifest
from camae.dataloader.plane_batch import PlaneBatch
from camae.errors import CamaeError

DEFAULT = "ca_mae"
GROUP = "camae.model_families"  # entry points: family name -> the module that registers it
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

    forward(batch, noise, *, mask_ratio, alpha, n_samples[, label_B]) returns scalars: "total", which
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
    def embed_batch(self, batch: PlaneBatch, pool: str, *, interpolate: bool) -> list[torch.Tensor]: ...


@dataclass(frozen=True)
class ModelFamily:
    """Models of one kind: their class, their configuration (`to_dict`, `from_dict`), and their presets by name.

    name: how the family's preset names begin, and what a model file stores.
    preset: preset(name, **changes) -> configuration.
    """

    name: str
    model: type[nn.Module]
    config: type[Any]
    preset: Callable[..., Any]


_registered: dict[str, ModelFamily] = {}


def register(family: ModelFamily) -> ModelFamily:
    """Make a family known under its name."""
    _registered[family.name] = family
    return family


@cache
def _installed() -> dict[str, EntryPoint]:
    """Families that installed packages announce."""
    return {point.name: point for point in entry_points(group=GROUP)}


def family(name: str) -> ModelFamily:
    """The family of that name, its module imported. Raises CamaeError for an unknown one."""
    if name not in _registered:
        if name not in _installed():
            raise CamaeError(f"there is no model family {name!r}; families are {', '.join(_names())}")
        _installed()[name].load()
    return _registered[name]


def _names() -> list[str]:
    return sorted(_registered.keys() | _installed().keys())


def family_of(preset: str) -> str:
    """The family whose presets begin like `preset`; CA-MAE where none does."""
    return next((f for f in sorted(_names(), key=len, reverse=True) if preset.startswith(f)), DEFAULT)


def build(name: str, **options: Any) -> Any:
    """An untrained model of a preset of any family, with fields of its configuration changed."""
    kind = family(family_of(name))
    return kind.model(kind.preset(name, **options))


def build_for(name: str, manifest: Manifest, **options: Any) -> Any:
    """As `build`, with the channels of a screen and, for models trained on labels, its perturbations as classes."""
    options = {"channels": tuple(manifest.channels)} | options
    if "classes" in {f.name for f in fields(family(family_of(name)).config)} and "classes" not in options:
        if PERTURBATION not in manifest.table:
            raise CamaeError(
                f"{name} learns to name perturbations, and the manifest has no column {PERTURBATION}"
            )
        options["classes"] = tuple(sorted(set(manifest.table[PERTURBATION]) - {""}))
    return build(name, **options)


def config_from(values: Mapping[str, Any]) -> Any:
    """The configuration that a model file stores, of whichever family."""
    values = dict(values)
    return family(values.pop("family", DEFAULT)).config.from_dict(values)


def model_class(config: Any) -> Any:
    """The class of models with this configuration: call it with the configuration for an untrained one."""
    return family(getattr(config, "family", DEFAULT)).model


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
