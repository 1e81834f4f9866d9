"""Counter-based random numbers: masks and seeds as functions of the crop's number, on any device and any rank."""

from __future__ import annotations

import numpy as np
import torch

_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_PLANES = 0x5851F42D4C957F2D  # sets the numbers of planes apart from those of patches
_LAST = 2**63 - 1


def mask_noise(
    seed: int, slots_B: torch.Tensor, counts_B: tuple[int, ...], device: torch.device
) -> torch.Tensor:
    """Masking noise, (sum of counts,) float32 uniform in [0, 1): a sample's smallest values are the visible patches.

    slots_B: (B,) int64 on the host, each crop's number in the run; counts_B: patches of each crop. Counter-based
    (SplitMix64 of seed, crop and patch): splitting a batch over passes or ranks changes no mask, and no number
    depends on the device or is read back from it.
    """
    return _uniform(_mix(slots_B * _signed(_GOLDEN) + seed), counts_B, device)


def hidden_planes(seed: int, slots_B: torch.Tensor, planes_B: tuple[int, ...], share: float) -> np.ndarray:
    """Channel mask, (sum of planes,) bool on the host: planes that are hidden whole, each with probability `share`.

    slots_B, seed: as for `mask_noise`. planes_B: planes of each crop. Of a crop whose planes would all be hidden, the
    one with the largest number stays, so a crop of one plane never hides it.
    """
    key_B = _mix(_mix(slots_B * _signed(_GOLDEN) + seed) ^ _PLANES)
    noise_K = _uniform(key_B, planes_B, torch.device("cpu"))
    hidden_K: np.ndarray = (noise_K < share).numpy()
    start = 0
    for count in planes_B:
        if hidden_K[start : start + count].all():
            hidden_K[start + int(noise_K[start : start + count].argmax())] = False
        start += count
    return hidden_K


def _uniform(key_B: torch.Tensor, counts_B: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """(sum of counts,) float32 uniform in [0, 1): the first numbers of each of the keys on the host."""
    total = sum(counts_B)
    counts = torch.tensor(counts_B)
    first_B = (counts.cumsum(0) - counts).to(device, non_blocking=True)
    key_B = key_B.to(device, non_blocking=True)
    counts = counts.to(device, non_blocking=True)
    first_L, key_L = (torch.repeat_interleave(x, counts, output_size=total) for x in (first_B, key_B))
    index_L = torch.arange(total, device=device) - first_L
    bits_L = _mix(key_L + (index_L + 1) * _signed(_GOLDEN))
    return _shifted(bits_L, 40).to(torch.float32) * 2.0**-24


def step_seed(seed: int, first_slot: int) -> int:
    """Seed of stochastic depth and of whatever else draws in a pass, from the pass's first crop."""
    return (((seed + 1) << 40) + first_slot) & _LAST


def _signed(word: int) -> int:
    """A 64-bit word as the int64 with the same bits."""
    return word - 2**64 if word >= 2**63 else word


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: torch.Tensor) -> torch.Tensor:
    """The SplitMix64 finalizer (Steele, Lea, Flood 2014); int64 multiplication wraps."""
    x = (x ^ _shifted(x, 30)) * _signed(_MIX_1)
    x = (x ^ _shifted(x, 27)) * _signed(_MIX_2)
    return x ^ _shifted(x, 31)
