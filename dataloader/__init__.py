"""Images on disk to batches of planes: manifests, dataset readers, sampling, back-ends. No models in here."""

from __future__ import annotations

if __name__ == "dataloader":
    raise ImportError("the folder dataloader/ is installed as camae.dataloader: import camae.dataloader")

import importlib
from typing import Any

_PUBLIC = {
    "PlaneBatch": "camae.dataloader.plane_batch",
    "Manifest": "camae.dataloader.manifest",
    "read_manifest": "camae.dataloader.datasets",
    "read_plane": "camae.dataloader.images",
    "read_crops": "camae.dataloader.images",
    "CropLoader": "camae.dataloader.loader",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'camae.dataloader' has no attribute {name!r}")
