"""Self-standardization of planes: its eps on stored values, by dtype and model family.

Both families reduce to (x - mean) / sqrt(var + eps^2) on the stored values, so one eps says everything.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from camae.dataloader.backends.native import plane_moments
from camae.dataloader.plane_batch import ValueRange
from camae.errors import CamaeError
from camae.kernels import tokenize

OWN_EPS = 1e-3  # gray levels, integer types
OWN_EPS_FLOAT = 1e-6  # of the value range, float types
OPENPHENOM_VARIANCE = 1e-5  # added to the variance on the [0, 1] scale

_INTEGER = (torch.uint8, torch.uint16)


def standardization_eps(mode: str, dtype: torch.dtype, value_range: ValueRange | None) -> float:
    """Standardization eps in stored gray levels for planes of `dtype`.

    mode: "own" or "openphenom", as `ModelConfig.standardization`.

    Raises CamaeError where the contract asks for an explicit `value_range=(lo, hi)`: float planes always,
    uint16 for models that were trained on [0, 1] values.
    """
    if value_range is not None and not (
        len(value_range) == 2 and all(isinstance(value, (int, float, np.number)) for value in value_range)
    ):
        raise CamaeError(f"value_range {value_range!r} is not two numbers, (lowest, highest) possible value")
    if value_range is not None and not value_range[1] > value_range[0]:
        raise CamaeError(f"value_range {tuple(value_range)} is empty: give (lowest, highest) possible value")
    if dtype not in _INTEGER and not dtype.is_floating_point:
        raise CamaeError(f"planes must be uint8, uint16 or float, not {dtype}")
    span = None if value_range is None else float(value_range[1]) - float(value_range[0])
    if mode == "openphenom":
        if dtype == torch.uint8:
            return math.sqrt(OPENPHENOM_VARIANCE) * 255
        if span is None:
            raise CamaeError(
                f"this model was trained on 8-bit images scaled to [0, 1]; for {dtype} planes say which values "
                "map to 0 and 1 with value_range=(lo, hi)"
            )
        return math.sqrt(OPENPHENOM_VARIANCE) * span
    if dtype in _INTEGER:
        return OWN_EPS
    if span is None:
        raise CamaeError(
            "float planes need value_range=(lo, hi), the lowest and highest value the instrument can give, so that "
            "images in [0, 1] are not mistaken for gray levels"
        )
    return OWN_EPS_FLOAT * span


def plane_statistics(
    planes_KHW: torch.Tensor, backend: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance of every plane in stored values, (K,) float64 each.

    Integer planes on the host go through the image reader's exact integer sums, one pass over the pixels where
    torch makes a copy in float64 first; all others, and a named backend, through the op of `camae.kernels`.
    """
    if (
        planes_KHW.device.type == "cpu"
        and planes_KHW.dtype in _INTEGER
        and planes_KHW.numel()
        and not backend
    ):
        moments_K2 = plane_moments(planes_KHW.numpy(), torch.get_num_threads())
        mean_K, var_K = torch.from_numpy(moments_K2).unbind(1)
        return mean_K, var_K
    return tokenize.plane_statistics(planes_KHW, backend=backend)
