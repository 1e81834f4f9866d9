"""Systems of the paper's Table 3: preset, model and training settings, at the smallest and at the paper's size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from camae.errors import CamaeError
from camae.reproduction.model_settings import (
    ADAMW,
    CROP,
    SMALL_CA_MAE,
    SMALL_MAE,
    SMALL_PAPER_DECODER,
    SMALL_VIT,
    ModelSettings,
    TrainingSettings,
)

UNTRAINED_FAMILIES = ("random", "pixel", "imagenet")


@dataclass(frozen=True)
class System:
    """One row of Table 3.

    name: of the system and its folder. family: "random", "pixel" or a family of `camae.model.registry`.
    group: the table's block. backbone: the paper's name for the model, ending in "+" with the Fourier loss.
    preset, options: of the model; "" where nothing is trained. recipe: training settings of this system alone.
    pool: how its tokens become a vector.
    """

    name: str
    family: str
    group: str
    backbone: str
    preset: str = ""
    options: ModelSettings = field(default_factory=ModelSettings)
    recipe: TrainingSettings = field(default_factory=TrainingSettings)
    pool: str = "mean"

    @property
    def trains(self) -> bool:
        """Whether the system is trained on the screen."""
        return self.family not in UNTRAINED_FAMILIES


_SIMPLE = (
    System("random", "random", "Simple baselines", "Random 1024-dim embeddings"),
    System("pixel", "pixel", "Simple baselines", "Pixel intensity statistics"),
)
_IMAGENET = tuple(
    System(
        f"imagenet_vit_{size}",
        "imagenet",
        "ImageNet-pretrained classifiers",
        label,
        f"imagenet_vit_{size}",
        pool="cls",
    )
    for size, label in (("s16", "ViT-S/16"), ("b16", "ViT-B/16"), ("b8", "ViT-B/8"), ("l16", "ViT-L/16"))
)
_WSL = "Weakly supervised models"
_MU = "MU-Nets"
_MAES = "MAE ViTs"
_CA = "Channel-agnostic MAE ViTs"

# At the smallest size every model is trained with AdamW; batch size and steps are the run's.
_SMALL_CONVOLUTIONAL: ModelSettings = {"crop": CROP}
_SLOWER: TrainingSettings = {**ADAMW, "lr": 1e-3}
_SMALL_PLAIN: TrainingSettings = {**ADAMW, "alpha": 0.0}
_SMALL_FOURIER: TrainingSettings = {**ADAMW, "alpha": 0.01}

# Each family at the size that two cores train in minutes. Table 3's variants that are questions of their own
# (AdaBN or not, Fourier loss or not) are kept.
SMALLEST = (
    *_SIMPLE,
    *_IMAGENET,
    System(
        "wsl_densenet", "wsl_densenet", _WSL, "DenseNet-ti", "wsl_densenet_ti", _SMALL_CONVOLUTIONAL, ADAMW
    ),
    System(
        "wsl_densenet_adabn",
        "wsl_densenet",
        _WSL,
        "DenseNet-ti w/ AdaBN",
        "wsl_densenet_ti_adabn",
        _SMALL_CONVOLUTIONAL,
        ADAMW,
    ),
    System("wsl_vit", "wsl_vit", _WSL, "ViT-ti/16", "wsl_vit_ti16", SMALL_VIT, _SLOWER, "cls"),
    System("mu_net", "mu_net", _MU, "MU-Net-ti", "mu_net_ti", _SMALL_CONVOLUTIONAL, _SLOWER),
    System("mae_vit", "mae_vit", _MAES, "MAE ViT-ti/16", "mae_vit_ti16", SMALL_MAE, _SMALL_PLAIN),
    System(
        "mae_vit_paper_decoder",
        "mae_vit",
        _MAES,
        "MAE ViT-ti/16, the paper's decoder",
        "mae_vit_ti16",
        SMALL_PAPER_DECODER,
        _SMALL_PLAIN,
    ),
    System("mae_vit_plus", "mae_vit", _MAES, "MAE ViT-ti/16+", "mae_vit_ti16", SMALL_MAE, _SMALL_FOURIER),
    System("ca_mae", "ca_mae", _CA, "CA-MAE ViT-ti/16", "ca_mae_vit_ti16", SMALL_CA_MAE, _SMALL_PLAIN),
    System(
        "ca_mae_plus", "ca_mae", _CA, "CA-MAE ViT-ti/16+", "ca_mae_vit_ti16", SMALL_CA_MAE, _SMALL_FOURIER
    ),
)

_PLAIN: TrainingSettings = {"alpha": 0.0}
_FOURIER: TrainingSettings = {"alpha": 0.01}


def _ca_mae(name: str, backbone: str, preset: str, recipe: str) -> System:
    """A channel-agnostic row at the paper's size, trained by a recipe of `camae.training.recipes`."""
    return System(name, "ca_mae", _CA, backbone, preset, recipe={"recipe": recipe})


PAPER = (
    *_SIMPLE,
    *_IMAGENET,
    System("wsl_densenet161", "wsl_densenet", _WSL, "DenseNet-161", "wsl_densenet161"),
    System("wsl_densenet161_adabn", "wsl_densenet", _WSL, "DenseNet-161 w/ AdaBN", "wsl_densenet161_adabn"),
    System(
        "wsl_densenet161_adabn_1024",
        "wsl_densenet",
        _WSL,
        "DenseNet-161 w/ AdaBN (1024-dim)",
        "wsl_densenet161_adabn_1024",
    ),
    System("wsl_vit_b16", "wsl_vit", _WSL, "ViT-B/16", "wsl_vit_b16", pool="cls"),
    System("wsl_vit_l16", "wsl_vit", _WSL, "ViT-L/16", "wsl_vit_l16", pool="cls"),
    System("mu_net_m", "mu_net", _MU, "MU-Net-M", "mu_net_m"),
    System("mu_net_l", "mu_net", _MU, "MU-Net-L", "mu_net_l"),
    System("mae_vit_s16", "mae_vit", _MAES, "MAE ViT-S/16", "mae_vit_s16", {}, _PLAIN),
    System("mae_vit_b16", "mae_vit", _MAES, "MAE ViT-B/16", "mae_vit_b16", {}, _PLAIN),
    System("mae_vit_b8", "mae_vit", _MAES, "MAE ViT-B/8", "mae_vit_b8", {}, _PLAIN),
    System("mae_vit_l16", "mae_vit", _MAES, "MAE ViT-L/16", "mae_vit_l16", {}, _PLAIN),
    System("mae_vit_l16_plus", "mae_vit", _MAES, "MAE ViT-L/16+", "mae_vit_l16", {}, _FOURIER),
    System("mae_vit_l8_plus", "mae_vit", _MAES, "MAE ViT-L/8+", "mae_vit_l8", {}, _FOURIER),
    _ca_mae("ca_mae_b16", "CA-MAE ViT-B/16", "ca_mae_vit_b16", "ca_mae_vit_b16"),
    _ca_mae("ca_mae_b16_plus", "CA-MAE ViT-B/16+", "ca_mae_vit_b16", "ca_mae_vit_b16+"),
    _ca_mae("ca_mae_l16_plus", "CA-MAE ViT-L/16+", "ca_mae_vit_l16", "ca_mae_vit_l16+"),
)
SIZES = {"smallest": SMALLEST, "paper": PAPER}


def chosen(size: str, names: Sequence[str] | None) -> tuple[System, ...]:
    """Systems of a size, all or by name or family.

    Raises CamaeError for an unknown size, name or family.
    """
    if size not in SIZES:
        raise CamaeError(f"size {size!r} is not {' or '.join(map(repr, SIZES))}")
    table = SIZES[size]
    if not names:
        return table
    known = {s.name for s in table} | {s.family for s in table}
    if unknown := set(names) - known:
        raise CamaeError(
            f"no system {', '.join(sorted(unknown))}; there are {', '.join(s.name for s in table)}"
        )
    return tuple(s for s in table if s.name in names or s.family in names)
