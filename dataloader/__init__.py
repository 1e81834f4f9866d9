"""Data loading: images on disk to batches of planes (manifests, dataset readers, crop sampling, image back-ends).

No models in here.
"""

from __future__ import annotations

if __name__ == "dataloader":
    raise ImportError("the folder dataloader/ is installed as camae.dataloader: import camae.dataloader")

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from camae.dataloader.datasets import read_manifest
    from camae.dataloader.loader import CropLoader
    from camae.dataloader.manifest import Manifest
    from camae.dataloader.plane_batch import PlaneBatch
    from camae.dataloader.read_pixels import read_crops, read_plane

# Imported at first use, so that `import camae` stays fast.
_MODULES = {
    "PlaneBatch": "camae.dataloader.plane_batch",
    "Manifest": "camae.dataloader.manifest",
    "read_manifest": "camae.dataloader.datasets",
    "read_plane": "camae.dataloader.read_pixels",
    "read_crops": "camae.dataloader.read_pixels",
    "CropLoader": "camae.dataloader.loader",
}
__all__ = ["CropLoader", "Manifest", "PlaneBatch", "read_crops", "read_manifest", "read_plane"]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'camae.dataloader' has no attribute {name!r}")
