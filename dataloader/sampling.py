"""Crop sampling: site, place and symmetry of every crop, a pure function of (number of sites, seed, slot).

A run's samples are numbered by slots 0, 1, 2, ... over all ranks. Visit v = slot // crops_per_site shows one
site; epoch e = v // n_sites visits every site exactly once, in a permutation drawn from (seed, e).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_PARTNERS = 1 << 40  # added to the seed: sets the draws of partners apart from those of places


@dataclass(frozen=True)
class Draws:
    """Random draws for B slots.

    rows_B:     (B,) int64 manifest rows.
    uniform_B2: (B, 2) float64 in [0, 1), where the crop lies along y and x, from the first to the last position.
    symmetry_B: (B,) int64 in 0..7, one of the eight flips and rotations.
    """

    rows_B: np.ndarray
    uniform_B2: np.ndarray
    symmetry_B: np.ndarray


def draw(n_sites: int, seed: int, slots_B: np.ndarray, crops_per_site: int = 1, attempt: int = 0) -> Draws:
    """Random draws for the given slots.

    slots_B: (B,) int64, numbers of the crops among all that a run draws.
    attempt: beyond 0, other places and symmetries in the same sites.
    """
    epochs_B, positions_B = np.divmod(slots_B // crops_per_site, n_sites)
    rows_B = np.empty(len(slots_B), np.int64)
    for epoch in set(epochs_B.tolist()):
        here = epochs_B == epoch
        rows_B[here] = _permutation(n_sites, seed, epoch)[positions_B[here]]
    bits_B3 = _bits(seed + (attempt << 32), slots_B, streams=3)
    return Draws(rows_B, _uniform(bits_B3[:, :2]), (bits_B3[:, 2] >> np.uint64(61)).astype(np.int64))


def draw_pairs(
    n_sites: int,
    seed: int,
    slots_B: np.ndarray,
    partners: Callable[[np.ndarray, np.ndarray], np.ndarray],
    crops_per_site: int = 1,
    attempt: int = 0,
) -> Draws:
    """Random draws in pairs: slot 2p shows the site that `draw` gives visit p, and slot 2p + 1 a partner of it.

    partners: (rows (P,), uniform numbers (P,)) -> rows (P,). Places and symmetries are each slot's own.
    """
    pair_B = slots_B // 2
    rows_B = draw(n_sites, seed, pair_B, crops_per_site).rows_B
    second = np.flatnonzero(slots_B % 2)
    bits_P = _bits(seed + _PARTNERS, pair_B[second], streams=1)[:, 0]
    rows_B[second] = partners(rows_B[second], _uniform(bits_P))
    own = draw(n_sites, seed, slots_B, crops_per_site, attempt)
    return Draws(rows_B, own.uniform_B2, own.symmetry_B)


def _uniform(bits: np.ndarray) -> np.ndarray:
    """Uniform float64 in [0, 1) of 64-bit words: 53 bits fill the mantissa, so they are exact multiples of 2^-53."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def symmetric(image_CHW: np.ndarray, symmetry: int) -> np.ndarray:
    """Flip or rotation (one of the eight symmetries of the square), as a view.

    symmetry: 0..7; bit 2 transposes, then bit 1 reverses the rows and bit 0 the columns.
    """
    if symmetry & 4:
        image_CHW = image_CHW.swapaxes(-1, -2)
    if symmetry & 2:
        image_CHW = image_CHW[..., ::-1, :]
    return image_CHW[..., ::-1] if symmetry & 1 else image_CHW


@lru_cache(maxsize=4)
def _permutation(n_sites: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(n_sites)


def _bits(seed: int, slots_B: np.ndarray, streams: int) -> np.ndarray:
    """Independent 64-bit words (B, streams): SplitMix64 of (seed, slot, stream), counter-based."""
    counter = slots_B.astype(np.uint64)[:, None] * np.uint64(streams) + np.arange(streams, dtype=np.uint64)
    return _mix(_start(seed) + counter * _GOLDEN)


@lru_cache(maxsize=16)
def _start(seed: int) -> np.ndarray:
    return _mix(np.array([seed], np.uint64) + _GOLDEN)


def _mix(x: np.ndarray) -> np.ndarray:
    """The SplitMix64 finalizer (Steele, Lea, Flood 2014); uint64 arithmetic wraps by design."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
