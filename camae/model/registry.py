"""Registry of model families: a family joins by `register`, called in a module that an entry point names.

Entry points of the group `camae.model_families` map a family's name to its module, which is imported when one of
its models is built or loaded. Preset names begin with the family's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

import torch

from camae.dataloader.loader import CropLoader
from camae.dataloader.manifest import Manifest
from camae.dataloader.plane_batch import PlaneBatch
from camae.errors import CamaeError
from camae.model.interface import Config, DefinesCropLoader, LabelConfig, Model

DEFAULT = "ca_mae"
GROUP = "camae.model_families"  # entry points: family name -> the module that registers it
PERTURBATION = "Metadata_Perturbation"


C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class ModelFamily(Generic[C]):
    """Model family: a class of models, of their configurations, and presets by name.

    name: how the family's preset names begin, and what a model file stores.
    model: model(config) -> untrained model. preset: preset(name, **changes) -> configuration.
    """

    name: str
    model: Callable[[C], Model]
    config: type[C]
    preset: Callable[..., C]


_registered: dict[str, ModelFamily[Any]] = {}


def register(family: ModelFamily[C]) -> ModelFamily[C]:
    """Register a family under its name."""
    _registered[family.name] = family
    return family


@cache
def _installed() -> dict[str, EntryPoint]:
    """Families that installed packages announce."""
    return {point.name: point for point in entry_points(group=GROUP)}


def family(name: str) -> ModelFamily[Any]:
    """The family of that name, its module imported. Raises CamaeError for an unknown one."""
    if name not in _registered:
        if name not in _installed():
            raise CamaeError(f"there is no model family {name!r}; families are {', '.join(families())}")
        _installed()[name].load()
    return _registered[name]


def families() -> list[str]:
    """Names of all families, registered or announced by an installed package."""
    return sorted(_registered.keys() | _installed().keys())


def family_of(preset: str) -> str:
    """The family whose presets begin like `preset`; CA-MAE where none does."""
    return next((f for f in sorted(families(), key=len, reverse=True) if preset.startswith(f)), DEFAULT)


def build(name: str, **options: object) -> Model:
    """An untrained model of a preset of any family, with fields of its configuration changed."""
    return from_config(family(family_of(name)).preset(name, **options))


def config_for(name: str, manifest: Manifest, **options: object) -> Config:
    """Configuration of a preset with the channels of a screen and, for models trained on labels, its perturbations.

    Raises CamaeError for a model trained on labels where the manifest names no perturbations.
    """
    made = family(family_of(name))
    options = {"channels": tuple(manifest.channels)} | options
    if isinstance(made.preset(name), LabelConfig) and "classes" not in options:
        if PERTURBATION not in manifest.table:
            raise CamaeError(
                f"{name} learns to name perturbations, and the manifest has no column {PERTURBATION}"
            )
        options["classes"] = tuple(sorted(set(manifest.table[PERTURBATION]) - {""}))
    return made.preset(name, **options)


def config_from(values: Mapping[str, object]) -> Config:
    """The configuration that a model file stores, of its family."""
    fields = dict(values)
    return family(str(fields.pop("family", DEFAULT))).config.from_dict(fields)


def from_config(config: Config) -> Model:
    """An untrained model of this configuration, of its family."""
    return family(config.family).model(config)


def crop_loader(model: Model) -> type[CropLoader]:
    """Loader of a model's training batches: `CropLoader`, unless the model defines its own."""
    return model.crop_loader if isinstance(model, DefinesCropLoader) else CropLoader


def labels(model: Model, manifest: Manifest, batch: PlaneBatch) -> dict[str, torch.Tensor]:
    """{"label_B": (B,) int64 class of every sample, -1 without one} for models trained on labels, else {}."""
    classes = model.config.classes if isinstance(model.config, LabelConfig) else ()
    if not classes:
        return {}
    index = {name: i for i, name in enumerate(classes)}
    names = manifest.table[PERTURBATION].to_numpy()[batch.rows_B]
    label_B = torch.tensor([index.get(n, -1) for n in names])
    return {"label_B": label_B.to(batch.planes_KHW.device, non_blocking=True)}
