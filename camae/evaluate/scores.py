"""Scores of an embedding of wells: linear separability of perturbations, and consistency of their replicates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from camae import maps
from camae.dataloader.manifest import ILLUMINATION, Manifest
from camae.errors import CamaeError
from camae.evaluate.config import EvaluateConfig
from camae.maps.inputs import listing
from camae.maps.profiles import column
from camae.maps.screens import plates_of
from camae.omissions import Omissions

_RIDGE = 1.0  # penalty in units of a well's mean squared length on standardized features
_FEWEST_CONTROLS = 2  # of a plate, to standardize it by them


@dataclass(frozen=True)
class Score:
    """Scores of some perturbations, with standard errors over wells and over perturbations.

    separability: balanced accuracy of a ridge classifier of perturbations, on plates that it was not fitted on;
    chance is what guessing gives. consistency: mean cosine of two wells of one perturbation less that of two wells of
    different ones; 0 where replicates are no more alike than others.
    """

    separability: float
    separability_se: float
    chance: float
    consistency: float
    consistency_se: float

    def row(self, prefix: str = "") -> dict[str, float]:
        """Columns of a table."""
        return {f"{prefix}{name}": value for name, value in vars(self).items()}


@dataclass(frozen=True)
class Wells:
    """Wells that the scores are of, out of the n rows of a table.

    rows: (m,) rows of wells with a perturbation that occurs in two groups. name, group: (m,) their perturbation and the
    group that is held out with them: their plate, or a half of the one plate. plate, control: (n,) of all rows; control
    is None where a plate has too few controls, and then every plate is standardized by all its wells.
    """

    rows: npt.NDArray[np.intp]
    name: npt.NDArray[np.str_]
    group: npt.NDArray[np.str_]
    plate: npt.NDArray[np.str_]
    control: npt.NDArray[np.bool_] | None
    notes: tuple[str, ...] = ()

    @property
    def perturbations(self) -> list[str]:
        """Names of the perturbations, sorted."""
        return sorted(set(self.name.tolist()))

    def halves(self, seed: int) -> tuple[set[str], set[str]]:
        """Two random halves of the perturbations: those to choose by, and those held out."""
        names = np.array(self.perturbations)
        shuffled = names[np.random.default_rng(seed).permutation(len(names))]
        half = (len(names) + 1) // 2
        return set(shuffled[:half].tolist()), set(shuffled[half:].tolist())


def check_columns(table: pd.DataFrame, config: EvaluateConfig, controls_needed: bool = False) -> None:
    """Raise CamaeError for a column of the options that the metadata (of wells, or of a manifest) do not have.

    Also for negative controls that were named, or are needed, and that no row is.
    """
    column(table, config.label, "perturbations (label=)", "the wells")
    column(table, config.plate, "plates (plate=)", "the wells")
    named = (config.control, config.negative) != (EvaluateConfig.control, EvaluateConfig.negative)
    if not (named or controls_needed):
        return  # a screen may have no controls
    controls = column(table, config.control, "controls (control=)", "the wells")
    if config.negative not in controls:
        raise CamaeError(
            f"{config.control} says {config.negative!r} nowhere, so no well is a negative control; it says "
            f"{listing(sorted(set(controls.tolist()) - {''}), 12) or 'nothing'} (control= and negative= choose)"
        )


def check_screen(manifest: Manifest, config: EvaluateConfig, controls_needed: bool = False) -> None:
    """`check_columns` of a manifest, before anything is embedded; its columns of files are no labels."""
    files = [c for c in manifest.table if c in manifest.channels or str(c).startswith(ILLUMINATION)]
    check_columns(manifest.table.drop(columns=files), config, controls_needed)


def labeled_wells(table: pd.DataFrame, config: EvaluateConfig, needed: int, left_out: Omissions) -> Wells:
    """Wells of a table that can be scored.

    needed: fewest perturbations. left_out: gets the perturbations that have no replicate in a second group.
    Raises CamaeError for a missing column, or too few perturbations.
    """
    notes: list[str] = []
    check_columns(table, config)
    name_N = column(table, config.label, "perturbations (label=)")
    plate_N = plates_of(table, config.plate, notes)
    marked = config.control in table or config.control.removeprefix("Metadata_") in table
    control_N = (
        column(table, config.control, "controls") == config.negative
        if marked
        else np.zeros(len(table), dtype=bool)
    )
    chosen = np.flatnonzero(~control_N & (name_N != ""))
    names, groups = pd.Series(name_N[chosen]), plate_N[chosen]
    if len(set(plate_N.tolist())) == 1:
        groups = (names.groupby(names).cumcount().to_numpy() % 2).astype(str)
        notes.append("there is one plate: halves of its wells are held out in turn instead of plates")
    seen = pd.Series(groups).groupby(names.to_numpy()).nunique() if len(names) else pd.Series(dtype=int)
    alone = seen.index[seen < 2]
    for name in alone:
        left_out.add("perturbation", name, "it has no replicate on a second plate to be tested on")
    kept = ~names.isin(alone).to_numpy()
    if (count := int((seen > 1).sum())) < needed:
        raise CamaeError(
            f"{count} perturbations have replicates on two plates, and {needed} are needed; name what is in "
            f"which well in metadata=, another column in label= (now {config.label}), or a screen with more"
        )
    fewest = pd.Series(control_N).groupby(plate_N).sum().min()
    if fewest < _FEWEST_CONTROLS:
        notes.append(
            f"a plate has {int(fewest)} negative controls ({config.control} says {config.negative!r}): plates are "
            "standardized by all their wells instead"
        )
    return Wells(
        chosen[kept],
        names.to_numpy(str)[kept],
        groups[kept],
        plate_N,
        control_N if fewest >= _FEWEST_CONTROLS else None,
        tuple(notes),
    )


def standardized(x_ND: np.ndarray, wells: Wells) -> np.ndarray:
    """Features (m, D) fp64 of the wells scored, each standardized by the controls of its plate."""
    z = maps.align(x_ND.astype(np.float64), "standardize", batch=wells.plate, control=wells.control)
    return np.asarray(z)[wells.rows]


def score(z_MD: np.ndarray, wells: Wells, names: set[str] | None = None) -> Score:
    """Scores of standardized features (m, D). names: perturbations to score; all by default."""
    kept = np.ones(len(wells.rows), dtype=bool) if names is None else np.isin(wells.name, sorted(names))
    z, name, group = z_MD[kept], wells.name[kept], wells.group[kept]
    found = maps.linear_probe(z, name, group, penalty=_RIDGE * z.shape[1], standardize=True)
    accuracy, n = found["balanced_accuracy"], found["n_rows"]
    each = replicate_excess(z, name)
    return Score(
        separability=accuracy,
        separability_se=float(np.sqrt(accuracy * (1 - accuracy) / n)),
        chance=found["chance"],
        consistency=float(each.mean()),
        consistency_se=float(each.std(ddof=1) / np.sqrt(len(each))),
    )


def replicate_excess(z_MD: np.ndarray, name_M: np.ndarray) -> np.ndarray:
    """(P,) per perturbation: mean cosine of its pairs of wells less that of its wells with all others'."""
    within = maps.consistency(z_MD, name_M)
    unit = z_MD / np.maximum(np.linalg.norm(z_MD, axis=1, keepdims=True), np.finfo(float).tiny)
    total = unit.sum(0)
    excess = []
    for perturbation, value in zip(within["perturbation"], within["consistency"], strict=True):
        own = name_M == perturbation
        sums = unit[own].sum(0)
        others = float(sums @ (total - sums)) / (own.sum() * (~own).sum())
        excess.append(value - others)
    return np.array(excess)
