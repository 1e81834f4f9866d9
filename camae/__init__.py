"""camae: channel-agnostic masked autoencoders for high-content microscopy.

This module is the public API and nothing else: every name below is loaded on first use (PEP 562), so that
`import camae` is light and needs neither torch nor a GPU. Their types stand in `__init__.pyi`.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "train": "camae.training",
    "load": "camae.model",
    "embed": "camae.embedding",
    "embed_screen": "camae.embedding",
    "use": "camae.embedding",
    "report": "camae.reporting",
    "CamaeError": "camae.errors",
}
_SUBMODULES = (
    "maps",
    "kernels",
    "dataloader",
    "model",
    "training",
    "embedding",
    "evaluate",
    "inference",
    "reproduction",
)

__all__ = ["CamaeError", "embed", "embed_screen", "load", "maps", "report", "train", "use"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"camae.{name}")
    if name == "__version__":  # pyproject.toml is the one place that states it
        return importlib.import_module("importlib.metadata").version("camae")
    raise AttributeError(f"module 'camae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBMODULES, "__version__"])
