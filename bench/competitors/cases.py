"""Cases on which systems are compared: arrays made from a seed, alike in every process.

A screen has perturbations with a signal of their own in every batch, batches with an offset, a scale and a direction
of variation of their own, and noise in correlated directions; a tenth of its wells are controls.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FULL = {
    "tvn": (20_000, 512),
    "sphering": (20_000, 512),
    "recall 3,000": (3_000, 512),
    "recall 10,000": (10_000, 512),
    "average precision": (2_000, 128),
}
SMALL = {
    "tvn": (1_600, 32),
    "sphering": (1_600, 32),
    "recall 3,000": (600, 32),
    "recall 10,000": (900, 32),
    "average precision": (160, 16),
}
BATCHES, REPLICATES, PAIRS_PER_ROW = 8, 8, 4


@dataclass(frozen=True)
class Case:
    """x (n, d) float32; per row a batch, whether it is a control, and a perturbation; pairs of perturbations."""

    x: np.ndarray
    batch: np.ndarray
    control: np.ndarray
    perturbation: np.ndarray
    pairs: np.ndarray


def make(name: str, full: bool) -> Case:
    """The arrays of a case."""
    n, d = (FULL if full else SMALL)[name]
    rng = np.random.default_rng(n + d)
    if name.startswith("recall"):
        names = np.array([f"g{i:05d}" for i in range(n)])
        sets = rng.normal(size=(n // 10, d)).astype(np.float32)  # related perturbations share a direction
        member = rng.integers(0, n // 10, n)
        x = (rng.normal(size=(n, d)) + 0.35 * sets[member]).astype(np.float32)
        left = rng.integers(0, n, PAIRS_PER_ROW * n // 2)
        related = np.argsort(member, kind="stable")
        place = np.argsort(related)
        near = related[(place[left] + 1) % n]
        pairs = names[np.concatenate([np.stack([left, near], 1), rng.integers(0, n, (len(left), 2))])]
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        return Case(x, np.full(n, "b0"), np.zeros(n, bool), names, pairs)
    control = np.arange(n) % 10 == 0
    batch = np.array([f"b{k}" for k in np.arange(n) * BATCHES // n])
    number = np.where(control, -1, np.arange(n) % (n // REPLICATES))
    signal = rng.normal(size=(n // REPLICATES, d)).astype(np.float32)
    mixing = (np.eye(d) + 0.5 * rng.normal(size=(d, d)) / np.sqrt(d)).astype(np.float32)
    x = rng.normal(size=(n, d)).astype(np.float32) @ mixing
    x += 0.45 * np.where(control[:, None], 0, signal[number])
    for k in range(BATCHES):
        rows = batch == f"b{k}"
        direction = rng.normal(size=(1, d)) / np.sqrt(d)
        x[rows] = x[rows] * rng.uniform(0.7, 1.4, d) + rng.normal(size=d)
        x[rows] += rng.normal(size=(rows.sum(), 1)) * 4 * direction
    perturbation = np.where(control, "control", np.char.add("p", np.maximum(number, 0).astype(str)))
    return Case(x.astype(np.float32), batch, control, perturbation, np.empty((0, 2), dtype=str))


def result_of_alignment(z: np.ndarray, case: Case, queries: int = 1000) -> dict[str, float]:
    """Of aligned profiles: the shares of nearest neighbors of the same batch, and of the same perturbation elsewhere.

    By cosine, of evenly spaced treated wells; "elsewhere" is among other batches. Without batch effects the first is
    about 1 / batches.
    """
    z = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    rows = np.flatnonzero(~case.control)[:: max(1, (~case.control).sum() // queries)]
    cosines = z[rows] @ z.T
    cosines[np.arange(len(rows)), rows] = -np.inf
    same_batch = (case.batch[cosines.argmax(1)] == case.batch[rows]).mean()
    cosines[case.batch[rows][:, None] == case.batch[None]] = -np.inf
    found = (case.perturbation[cosines.argmax(1)] == case.perturbation[rows]).mean()
    return {"neighbors_of_same_batch": float(same_batch), "neighbors_of_same_perturbation": float(found)}
