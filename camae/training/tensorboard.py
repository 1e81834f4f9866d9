"""TensorBoard event files beside `log.jsonl`, by request."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from camae.errors import MissingBackendError


class TensorBoard:
    """Writes every number of a log row as a scalar. Raises MissingBackendError without the package tensorboard."""

    def __init__(self, folder: Path, first_step: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingBackendError(
                "tensorboard=True needs the package tensorboard (pip install tensorboard); log.jsonl is written without"
            ) from None
        self._writer = SummaryWriter(str(folder), purge_step=first_step + 1)

    def write(self, row: Mapping[str, Any]) -> None:
        """One row of the log."""
        for name, value in row.items():
            if name != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, row["step"])
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
