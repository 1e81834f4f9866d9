"""Device properties that kernels depend on: GPU architecture, autocast's dtype, the dtype of sums."""

from __future__ import annotations

import torch


def architecture(device: torch.device) -> str:
    """The key into a kernel's frozen configurations: sm_80, sm_90 (and newer), or interpreter."""
    if device.type != "cuda":
        return "interpreter"
    return "sm_90" if torch.cuda.get_device_capability(device)[0] >= 9 else "sm_80"


def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; 1 where kernels are interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype autocast asks for on this device, None outside autocast."""
    if device.type not in ("cpu", "cuda") or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def accumulation_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype in which sums over x are taken: fp64 for fp64, else fp32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
