"""`camae convert`: any model file that `load` knows to our safetensors form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from camae.errors import CamaeError
from camae.model.weights import MODEL_FILE, load, save


def convert(source: str | Path, destination: str | Path, **changes: Any) -> Path:
    """Write the model at `source` (released weights, a run, a checkpoint) as our safetensors; returns its path.

    destination: a file name, or a folder, in which it becomes model.safetensors. changes: as in `load`.
    Raises CamaeError for a source that `load` refuses, or a destination that exists.
    """
    target = Path(destination)
    if target.is_dir() or not target.suffix:
        target = target / MODEL_FILE
    if target.exists():
        raise CamaeError(f"{target} exists; name another file, or delete it first")
    model = load(source, **changes)
    return save(model, target, converted_from=Path(source).name)
