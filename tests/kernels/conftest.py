"""Inputs shared by the op tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch


def make_planes(dtype: torch.dtype, shape: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    """Random planes in a stored dtype, each with its own mean and spread."""
    rng = np.random.default_rng(seed)
    top = 255 if dtype == torch.uint8 else 65535
    mean = rng.uniform(0.2, 0.8, (shape[0], 1, 1)) * top
    x = mean + rng.normal(size=shape) * rng.uniform(0.02, 0.1, (shape[0], 1, 1)) * top
    x = x.round().clip(0, top)
    if dtype == torch.float32:
        return torch.from_numpy((x / top).astype(np.float32))
    return torch.from_numpy(x.astype(np.uint8 if dtype == torch.uint8 else np.uint16))


@dataclass
class TokenizeCase:
    """Arguments of tokenize for a ragged batch; sample 1 has no plane, the last sample may keep nothing."""

    planes_KHW: torch.Tensor
    sample_K: torch.Tensor
    keep_index: torch.Tensor | None
    parameters: tuple[torch.Tensor, ...]
    n_samples: int
    eps: float


@pytest.fixture
def tokenize_case():
    """A factory of TokenizeCase: (dtype, patch, keep) -> case; parameters in fp64."""

    def make(dtype: torch.dtype, patch: int, keep: str = "random", width: int = 40, seed: int = 0):
        H, W = 2 * patch, 3 * patch
        planes_KHW = make_planes(dtype, (7, H, W), seed)
        sample_K = torch.tensor([0, 0, 0, 2, 2, 3, 3])
        N = 6
        g = torch.Generator().manual_seed(seed)
        total = {"all": None, "random": 19, "one": 1, "none": 0}[keep]
        index = None if total is None else torch.randperm(7 * N, generator=g)[:total].sort().values
        sizes = ((width, patch**2), (width,), (N, width), (width,))
        parameters = tuple(torch.randn(s, generator=g, dtype=torch.float64) * 0.3 for s in sizes)
        eps = 1e-6 if dtype == torch.float32 else 1e-3
        return TokenizeCase(planes_KHW, sample_K, index, parameters, 5, eps)

    return make


@dataclass
class LossCase:
    """Arguments of reconstruction_loss; prediction in fp64."""

    pred_MP2: torch.Tensor
    planes_KHW: torch.Tensor
    plane_M: torch.Tensor
    patch_M: torch.Tensor
    weight_M: torch.Tensor
    eps: float


@pytest.fixture
def loss_case():
    """A factory of LossCase: (dtype, patch, M) -> case."""

    def make(dtype: torch.dtype, patch: int, M: int = 21, seed: int = 0):
        planes_KHW = make_planes(dtype, (5, 2 * patch, 3 * patch), seed)
        g = torch.Generator().manual_seed(seed)
        return LossCase(
            torch.randn(M, patch**2, generator=g, dtype=torch.float64) * 0.7,
            planes_KHW,
            torch.randint(0, 5, (M,), generator=g),
            torch.randint(0, 6, (M,), generator=g),
            torch.rand(M, generator=g, dtype=torch.float64),
            1e-6 if dtype == torch.float32 else 1e-3,
        )

    return make
