"""Intensity read-out: statistics of each plane's stored values, which self-standardization takes away.

DNA content, expression and focus are intensities: a model that standardizes every plane cannot see them, and
`intensity=True` puts them beside its vectors, in the camera's units.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from camae.model.pooling import PER_CHANNEL

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
STATISTICS = ("mean", "sd", *(f"q{100 * q:02.0f}" for q in QUANTILES))


def intensity_names(channels: Sequence[str]) -> list[str]:
    """Names of the intensity statistics of these channels, in order: intensity_DNA_mean, intensity_DNA_sd, ...

    For each channel in turn the mean, the population standard deviation, and the quantiles of `QUANTILES` (q01 to q99).
    """
    return [f"intensity_{channel}_{name}" for channel in channels for name in STATISTICS]


def plane_intensity(planes: torch.Tensor) -> torch.Tensor:
    """Intensity statistics (C, 7) of planes (C, ...), in their stored units, float64 on the CPU.

    planes: uint8, uint16 or float, pixels in any shape. Quantiles interpolate linearly between order statistics.
    Computed in float64 from the stored values, so that 16-bit planes lose nothing.
    """
    values = planes.detach().cpu()
    values_CN = (
        (values.float() if values.dtype == torch.bfloat16 else values).numpy().reshape(len(planes), -1)
    )
    rank_Q = np.array(QUANTILES) * (values_CN.shape[1] - 1)
    low_Q = np.floor(rank_Q).astype(np.int64)
    high_Q = np.minimum(low_Q + 1, values_CN.shape[1] - 1)
    ordered_CN = np.partition(values_CN, np.unique([low_Q, high_Q]), axis=1)
    below_CQ, above_CQ = ordered_CN[:, low_Q].astype(np.float64), ordered_CN[:, high_Q].astype(np.float64)
    quantiles_CQ = below_CQ + (rank_Q - low_Q) * (above_CQ - below_CQ)
    wide_CN = values_CN.astype(np.float64)
    moments_C2 = np.stack([wide_CN.mean(1), wide_CN.std(1)], axis=1)
    return torch.from_numpy(np.concatenate([moments_C2, quantiles_CQ], axis=1))


def with_intensity(vector: torch.Tensor, intensity_C7: torch.Tensor, pool: str) -> torch.Tensor:
    """A vector of `pool` with the intensity statistics after it, in the last axis; float32 on the vector's device.

    (..., D) becomes (..., D + 7C), channel by channel; (..., C, D) of a per-channel pooling becomes (..., C, D + 7).
    """
    values = intensity_C7.to(vector.device, vector.dtype)
    if pool not in PER_CHANNEL:
        values = values.flatten()
    return torch.cat([vector, values.expand(*vector.shape[: vector.ndim - values.ndim], *values.shape)], -1)
