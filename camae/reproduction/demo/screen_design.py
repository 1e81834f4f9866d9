"""Experimental design of the demo screen: perturbations, their effects and relationships, plate layouts."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from camae.reproduction.demo.screen_parameters import FACTORS, ScreenParameters

Array = npt.NDArray[np.float64]
ROWS, COLUMNS = 8, 12
CONTROL = "non-targeting"


def stream(seed: int, *key: int) -> np.random.Generator:
    """Random generator of a key, the same in every process and in any order of calls."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *key])))


@dataclass(frozen=True)
class Design:
    """Perturbation names, their group (-1: none) and their factor vectors, in one order."""

    names: tuple[str, ...]
    group_P: npt.NDArray[np.int64]
    effect_PF: Array

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every unordered pair of perturbations of one group, sorted by name."""
        return sorted(
            (min(self.names[i], self.names[j]), max(self.names[i], self.names[j]))
            for i, j in combinations(range(len(self.names)), 2)
            if self.group_P[i] >= 0 and self.group_P[i] == self.group_P[j]
        )


def _names(rng: np.random.Generator, count: int) -> tuple[str, ...]:
    letters = np.array(list("ABCDEFGHKLMNPRSTVXZ"))
    names: list[str] = []
    while len(names) < count:
        stem = "".join(rng.choice(letters, int(rng.integers(3, 5)), replace=False))
        name = f"{stem}{rng.integers(1, 20)}"
        if name not in names:
            names.append(name)
    return tuple(names)


def design(parameters: ScreenParameters) -> Design:
    """Random design: one orthogonal direction of factor space per group, plus an effect of each member's own."""
    rng = stream(parameters.seed, 0)
    basis_FF = np.linalg.qr(rng.standard_normal((len(FACTORS), len(FACTORS))))[0]
    grouped = parameters.groups * parameters.group_size
    count = grouped + parameters.singletons
    group_P = np.concatenate(
        [np.arange(grouped) // parameters.group_size, np.full(parameters.singletons, -1)]
    )
    own_PF = rng.standard_normal((count, len(FACTORS)))
    own_PF /= np.linalg.norm(own_PF, axis=1, keepdims=True)
    effect_PF = parameters.own_strength * own_PF
    effect_PF[:grouped] += parameters.group_strength * basis_FF[group_P[:grouped]]
    effect_PF[grouped:] = parameters.group_strength * own_PF[grouped:]
    weak = count - parameters.weak_singletons
    effect_PF[weak:] = parameters.weak_strength * own_PF[weak:]
    order = rng.permutation(count)
    return Design(_names(rng, count), group_P[order], effect_PF[order])


def well_name(index: int) -> str:
    """`A01` to `H12`, row by row."""
    return f"{'ABCDEFGH'[index // COLUMNS]}{index % COLUMNS + 1:02d}"


def is_edge(index: int) -> bool:
    """Whether a well lies on the outer rim of the plate."""
    row, column = divmod(index, COLUMNS)
    return row in (0, ROWS - 1) or column in (0, COLUMNS - 1)


def plate_layout(parameters: ScreenParameters, plate: int) -> npt.NDArray[np.int64]:
    """The perturbation of each of the 96 wells, -1 for a negative control; drawn anew for every plate."""
    count = parameters.groups * parameters.group_size + parameters.singletons
    wells = np.full(ROWS * COLUMNS, -1)
    wells[:count] = np.arange(count)
    return stream(parameters.seed, 1, plate).permutation(wells)


def well_factors(parameters: ScreenParameters, plate: int, well: int, effect_F: Array) -> Array:
    """Mean factor values of a well: effect of the perturbation, plate drift, well variation, edge effect."""
    drift_F = parameters.plate_factor_sd * stream(parameters.seed, 2, plate).standard_normal(len(FACTORS))
    own_F = parameters.well_sd * stream(parameters.seed, 3, plate, well).standard_normal(len(FACTORS))
    factors_F = effect_F + drift_F + own_F
    if is_edge(well):
        factors_F[FACTORS.index("cell_density")] += parameters.edge_density
    return factors_F
