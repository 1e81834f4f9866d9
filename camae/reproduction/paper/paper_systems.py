"""The systems of the paper's Table 3: which preset, how it is trained at the smallest and at the paper's size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from camae.errors import CamaeError

CROP = 128
_SMALL_VIT: dict[str, Any] = {"crop": CROP, "width": 96, "depth": 4, "heads": 3, "drop_path": 0.0}
_IMAGE_DECODER = {"width": 64, "depth": 2, "heads": 4, "cross_attention": "none"}
# The demo's decoder: see `camae.reproduction.demo.run_demo`.
_CHANNEL_DECODER = {
    "width": 64,
    "depth": 1,
    "heads": 4,
    "cross_heads": 4,
    "context": "visible",
    "cross_residual": True,
}
_CA_MAE = _SMALL_VIT | {"decoder": _CHANNEL_DECODER}
_MAE = _SMALL_VIT | {"decoder": _IMAGE_DECODER}
# At the smallest size every model takes the same optimizer; batch, steps and learning rate are the run's.
_ADAMW = {"optimizer": "adamw", "lr": 3e-3}


@dataclass(frozen=True)
class System:
    """One row of Table 3.

    name: how it is called here (and its folder). family: "random", "pixel" or a family of `camae.model.registry`.
    backbone: the paper's name for the model, ending in "+" with the Fourier loss. group: the table's block.
    preset, options: of the model; "" where nothing is trained. recipe: training settings that are its own.
    pool: how its tokens become a vector.
    """

    name: str
    family: str
    group: str
    backbone: str
    preset: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    pool: str = "mean"

    @property
    def trains(self) -> bool:
        """Whether the system is trained on the screen."""
        return self.family not in ("random", "pixel", "imagenet")


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
_WSL, _MU, _MAES, _CA = (
    "Weakly supervised models",
    "MU-Nets",
    "MAE ViTs",
    "Channel-agnostic MAE ViTs",
)
_DENSE = {"crop": CROP}

# Each family at the size that two cores train in minutes. Table 3's variants that are questions of their own
# (AdaBN or not, Fourier loss or not) are kept.
SMALLEST = (
    *_SIMPLE,
    *_IMAGENET,
    System("wsl_densenet", "wsl_densenet", _WSL, "DenseNet-ti", "wsl_densenet_ti", _DENSE, _ADAMW),
    System(
        "wsl_densenet_adabn",
        "wsl_densenet",
        _WSL,
        "DenseNet-ti w/ AdaBN",
        "wsl_densenet_ti_adabn",
        _DENSE,
        _ADAMW,
    ),
    System("wsl_vit", "wsl_vit", _WSL, "ViT-ti/16", "wsl_vit_ti16", _SMALL_VIT, _ADAMW | {"lr": 1e-3}, "cls"),
    System("mu_net", "mu_net", _MU, "MU-Net-ti", "mu_net_ti", _DENSE, _ADAMW | {"lr": 1e-3}),
    System("mae_vit", "mae_vit", _MAES, "MAE ViT-ti/16", "mae_vit_ti16", _MAE, _ADAMW | {"alpha": 0.0}),
    System(
        "mae_vit_plus", "mae_vit", _MAES, "MAE ViT-ti/16+", "mae_vit_ti16", _MAE, _ADAMW | {"alpha": 0.01}
    ),
    System("ca_mae", "ca_mae", _CA, "CA-MAE ViT-ti/16", "ca_mae_vit_ti16", _CA_MAE, _ADAMW | {"alpha": 0.0}),
    System(
        "ca_mae_plus",
        "ca_mae",
        _CA,
        "CA-MAE ViT-ti/16+",
        "ca_mae_vit_ti16",
        _CA_MAE,
        _ADAMW | {"alpha": 0.01},
    ),
)

_PLUS, _PLAIN = {"alpha": 0.01}, {"alpha": 0.0}
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
    System("mae_vit_l16_plus", "mae_vit", _MAES, "MAE ViT-L/16+", "mae_vit_l16", {}, _PLUS),
    System("mae_vit_l8_plus", "mae_vit", _MAES, "MAE ViT-L/8+", "mae_vit_l8", {}, _PLUS),
    System("ca_mae_b16", "ca_mae", _CA, "CA-MAE ViT-B/16", "ca_mae_vit_b16", {}, _PLAIN),
    System("ca_mae_b16_plus", "ca_mae", _CA, "CA-MAE ViT-B/16+", "ca_mae_vit_b16", {}, _PLUS),
    System("ca_mae_l16_plus", "ca_mae", _CA, "CA-MAE ViT-L/16+", "ca_mae_vit_l16", {}, _PLUS),
)
SIZES = {"smallest": SMALLEST, "paper": PAPER}


def chosen(size: str, names: Sequence[str] | None) -> tuple[System, ...]:
    """Systems of a size, all or by name or family. Raises CamaeError for one that is not there."""
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
