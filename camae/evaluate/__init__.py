"""Evaluation of a model on a labeled screen: which block to embed with, and which channel can be spared."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from camae.evaluate.config import ChannelsConfig, EvaluateConfig
    from camae.evaluate.imputation import Imputed, impute
    from camae.evaluate.layer_choice import layers
    from camae.evaluate.missing_channels import channels

_PUBLIC = {
    "ChannelsConfig": "camae.evaluate.config",
    "EvaluateConfig": "camae.evaluate.config",
    "Imputed": "camae.evaluate.imputation",
    "channels": "camae.evaluate.missing_channels",
    "impute": "camae.evaluate.imputation",
    "layers": "camae.evaluate.layer_choice",
}

__all__ = ["ChannelsConfig", "EvaluateConfig", "Imputed", "channels", "impute", "layers"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'camae.evaluate' has no attribute {name!r}")
