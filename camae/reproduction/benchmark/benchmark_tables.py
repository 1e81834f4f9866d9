"""Benchmark tables of one profile table: recall by alignment, recall after TVN, recall curves.

They are the paper's Tables 2 and 3 and its Figure 5 (right); Table 4 is in `retrieval_tables`.
`camae.reproduction.benchmark.run_benchmark` writes them to files.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd

from camae import maps
from camae.errors import CamaeError
from camae.maps.aggregation import aggregate, control_mean, perturbation_names
from camae.maps.alignment import align
from camae.maps.arms import arm_bias, correct_arms, gene_matches, read_arms, read_expression
from camae.maps.arrays import namespace, rows
from camae.maps.inputs import embeddings
from camae.maps.pairs import Pairs
from camae.maps.perturbation_map import (
    Components,
    component_options,
    perturbation_vectors,
    replicate_counts,
)
from camae.maps.replicate_counts import matched_recall, replicate_warnings
from camae.maps.shrinkage import Shrinkage, check_shrinkage

PairsBySource: TypeAlias = Mapping[str, Pairs]
SHRUNK = ("tvn_shrunk", "replicate_whitening")  # methods that take a shrinkage
Modality: TypeAlias = Literal["compound", "crispr", "orf"]
BatchUnit: TypeAlias = Literal["plate", "experiment"]


@dataclass(frozen=True)
class AlignmentRow:
    """Row of Table 2: an alignment method and the batches it is fitted on (None: the whole screen)."""

    label: str
    method: str
    batches: BatchUnit | None


ALIGNMENTS = (
    AlignmentRow("No transformation", "none", None),
    AlignmentRow("PCA", "pca", None),
    AlignmentRow("Center by plate", "center", "plate"),
    AlignmentRow("Center by experiment", "center", "experiment"),
    AlignmentRow("Standardize by plate", "standardize", "plate"),
    AlignmentRow("Standardize by experiment", "standardize", "experiment"),
    AlignmentRow("PCA+Standardize by plate", "pca_standardize", "plate"),
    AlignmentRow("PCA+Standardize by experiment", "pca_standardize", "experiment"),
    AlignmentRow("TVN", "tvn", "plate"),
    AlignmentRow("TVN, shrunk", "tvn_shrunk", "plate"),
    AlignmentRow("Replicate whitening", "replicate_whitening", "plate"),
)


@dataclass(frozen=True)
class GeneTables:
    """Gene tables of the chromosome-arm correction. arms: gene -> arm ("chr1p"). zfpkm: gene -> expression."""

    arms: Mapping[str, str]
    zfpkm: Mapping[str, float]


def gene_tables(
    arms: str | Path | None,
    expression: str | Path | None,
    arm_correction: bool | None = None,
    tvn: bool = True,
) -> GeneTables | None:
    """The gene tables of the arm correction, None where it is not made. Raises CamaeError where they are missing."""
    needed = "arms (gene, chrom_arm_name) and expression (gene, zfpkm)"
    if (arms is None) != (expression is None):
        raise CamaeError(f"the arm correction needs both tables: {needed}")
    if arm_correction and (arms is None or not tvn):
        raise CamaeError(f"the arm correction follows TVN and needs two gene tables: {needed}")
    if arms is None or expression is None or arm_correction is False:
        return None
    return GeneTables(read_arms(arms), read_expression(expression))


@dataclass
class ScreenProfiles:
    """Profiles of a screen with their metadata.

    x: (n, d) NumPy or CuPy array. perturbation, plate, experiment, target, well, mechanism, compound, dose: n texts
    each (None: not known).
    control: n booleans, negative controls. components: how many an alignment keeps (`maps.map_profiles`).
    method: alignment of all tables but Table 2, which compares alignments, and Table 4, which takes TVN as published.
    shrinkage: of the methods that take it, None for their default.
    condition: n texts, parts of the screen for Table 4. modalities: n words of the kind of perturbation, where it
    differs; modality: the kind, where it does not (siblings: by |cosine| for compounds, none for ORFs).
    notes: what the tables have to say about the data, filled by them.
    Raises CamaeError when no row is a negative control.
    """

    x: np.ndarray
    perturbation: np.ndarray
    plate: np.ndarray
    control: np.ndarray
    experiment: np.ndarray | None = None
    target: np.ndarray | None = None
    well: np.ndarray | None = None
    components: Components = "half_controls"
    notes: list[str] = field(default_factory=list)
    mechanism: np.ndarray | None = None
    compound: np.ndarray | None = None
    dose: np.ndarray | None = None
    method: str = "tvn"
    shrinkage: Shrinkage | None = None
    condition: np.ndarray | None = None
    modalities: np.ndarray | None = None
    modality: Modality = "compound"

    def __post_init__(self) -> None:
        self.x = embeddings(self.x)
        if self.shrinkage is not None:
            check_shrinkage("shrinkage", self.shrinkage)
        if self.method not in maps.METHODS:
            raise CamaeError(f"unknown alignment '{self.method}'; choose one of {', '.join(maps.METHODS)}")
        if not self.control.any():
            raise CamaeError(
                "no profile is a negative control; name the column of controls and the value that marks them"
            )

    @property
    def treated(self) -> np.ndarray:
        """(n,) booleans: rows of named perturbations, without controls."""
        return ~self.control & (self.perturbation != "")

    @property
    def chosen(self) -> AlignmentRow:
        """The alignment of `method`, by plate: a row of Table 2 where there is one."""
        by_plate = [row for row in ALIGNMENTS if row.method == self.method and row.batches in ("plate", None)]
        return by_plate[0] if by_plate else AlignmentRow(self.method, self.method, "plate")

    def add_notes(self, messages: Sequence[str]) -> None:
        """Append the notes that are not there yet."""
        self.notes += [message for message in dict.fromkeys(messages) if message not in self.notes]

    def aligned(self, alignment: AlignmentRow) -> np.ndarray:
        """Profiles aligned on the controls (n, k); warnings (dropped null components) become notes."""
        batches = {None: None, "plate": self.plate, "experiment": self.experiment}[alignment.batches]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            z = self.align(alignment.method, batches, self.control)
        self.add_notes([str(warning.message) for warning in caught])
        return z

    def align(self, method: str, batches: np.ndarray | None, control: np.ndarray) -> np.ndarray:
        """Profiles aligned on `control` (n booleans) as `maps.map_profiles` aligns them, (n, k)."""
        if method == "none":
            return align(self.x, method)
        options = component_options(method, self.x.shape[1], control, self.components)
        if self.shrinkage is not None and method in SHRUNK:
            options["shrinkage"] = self.shrinkage
        return align(self.x, method, batches, control, perturbation=self.perturbation, **options)

    def to_map(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Spherical means of the perturbations with the origin at the controls' mean: vectors (p, k), names (p,)."""
        return perturbation_vectors(z, self.perturbation, self.control)


def recall_by_alignment(screen: ScreenProfiles, pairs: PairsBySource) -> pd.DataFrame:
    """Table 2: recall of every alignment in every source. Columns alignment, source, those of `recall`, n_unknown."""
    parts = []
    for alignment in ALIGNMENTS:
        if alignment.batches == "experiment" and screen.experiment is None:
            continue
        try:
            vectors, names = screen.to_map(screen.aligned(alignment))
        except CamaeError as error:
            if alignment.method not in SHRUNK:
                raise
            screen.add_notes([f"{alignment.label}: {error}"])
            continue
        table = _recall(screen, vectors, names, pairs)
        parts.append(table.assign(alignment=alignment.label))
    return _leading(pd.concat(parts, ignore_index=True), ["alignment", "source"])


def recall_after_tvn(
    screen: ScreenProfiles,
    pairs: PairsBySource,
    genes: GeneTables | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Table 3: recall after TVN (or the method chosen), and after correcting chromosome arms where there are `genes`.

    Order: alignment, arm correction on the wells, spherical mean per gene. Returns the recall table (column step) and
    the arm bias before and after (None without `genes`).
    """
    z, label = screen.aligned(screen.chosen), screen.chosen.label
    vectors, names = screen.to_map(z)
    parts = [_recall(screen, vectors, names, pairs).assign(step=label)]
    bias = None
    if genes is not None:
        step = f"{label}, arms corrected"
        screen.add_notes(
            [gene_matches(names, genes.arms, "arms"), gene_matches(names, genes.zfpkm, "expression")]
        )
        before = arm_bias(vectors, names, genes.arms).assign(step=label)
        vectors, names = screen.to_map(_arms_corrected(screen, z, genes))
        parts.append(_recall(screen, vectors, names, pairs).assign(step=step))
        after = arm_bias(vectors, names, genes.arms).assign(step=step)
        bias = pd.concat([before, after], ignore_index=True)
    return _leading(pd.concat(parts, ignore_index=True), ["step", "source"]), bias


def _arms_corrected(screen: ScreenProfiles, z: np.ndarray, genes: GeneTables) -> np.ndarray:
    """z with each arm's mean over unexpressed genes subtracted from the wells of that arm.

    The mean is taken over genes, not wells, so that a gene with more replicates does not weigh more: the shift is
    learned on gene means about the controls and applied to the wells.
    """
    chosen = np.flatnonzero(screen.treated)
    by = screen.perturbation[chosen]
    mean = aggregate(rows(z, chosen), by, "mean", origin=control_mean(z, screen.control))
    names = perturbation_names(by)
    shift = correct_arms(mean, names, genes.arms, genes.zfpkm) - mean
    out = z.copy()
    xp = namespace(out)
    out[xp.asarray(chosen)] += shift[xp.asarray(np.searchsorted(names, by))]
    return out


def recall_curves(screen: ScreenProfiles, pairs: PairsBySource) -> pd.DataFrame:
    """Recall against percentile after TVN or the method chosen (Figure 5, right), columns of `maps.recall_curve`."""
    vectors, names = screen.to_map(screen.aligned(screen.chosen))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return maps.recall_curve(vectors, names, pairs)


def recall_of_matched_pairs(screen: ScreenProfiles, pairs: PairsBySource, seed: int = 0) -> pd.DataFrame:
    """Recall after TVN beside that of random pairs with as many replicates: source, columns of `maps.matched_recall`.

    Where replicate counts confound recall, a note says so with the number.
    """
    vectors, names = screen.to_map(screen.aligned(screen.chosen))
    counts = replicate_counts(screen.perturbation, screen.control)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pairs left out are among the notes of Table 2
        table = matched_recall(vectors, names, counts, pairs, seed=seed)
    screen.add_notes(replicate_warnings(table))
    return table.rename_axis("source").reset_index()


def _recall(
    screen: ScreenProfiles,
    vectors: np.ndarray,
    names: np.ndarray,
    pairs: PairsBySource,
) -> pd.DataFrame:
    """Recall with n_unknown; what it warns of (pairs left out, names in another case) becomes notes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scores = maps.recall(vectors, names, pairs, interval=True)
    screen.add_notes([str(warning.message) for warning in caught])
    unknown = [scores.attrs["n_unknown"][source] for source in scores.index]
    scores.attrs = {}
    return scores.assign(n_unknown=unknown).rename_axis("source").reset_index()


def _leading(table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """The table with the named columns first."""
    return table[[*names, *(name for name in table.columns if name not in names)]]
