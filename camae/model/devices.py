"""Devices that a model can be put on, checked by name."""

from __future__ import annotations

import torch

from camae.errors import CamaeError, MissingBackendError


def check_device(device: str | torch.device) -> torch.device:
    """The device of this name. Raises CamaeError for a name of none, MissingBackendError for one that is not here."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise CamaeError(f"device {str(device)!r} is not 'cpu', 'cuda' or 'cuda:' and a number") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise MissingBackendError(
            f"device {str(device)!r}: PyTorch finds no GPU here; take 'cpu', or see what camae doctor says"
        )
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise MissingBackendError(
            f"device {str(device)!r}: there are {torch.cuda.device_count()} GPUs here, cuda:0 is the first"
        )
    if found.type not in ("cpu", "cuda"):
        raise CamaeError(f"device {str(device)!r}: camae runs on 'cpu' and on 'cuda'")
    return found
