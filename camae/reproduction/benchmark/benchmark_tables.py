"""Benchmark tables of one profile table: recall by alignment, recall after TVN, recall curves, fraction retrieved.

They are the paper's Tables 2, 3 and 4 and its Figure 5 (right). `camae.reproduction.benchmark.run_benchmark` writes
them to files.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd

from camae import maps
from camae.errors import CamaeError
from camae.maps.aggregation import aggregate, control_mean, perturbation_names
from camae.maps.alignment import align, split_controls
from camae.maps.arms import arm_bias, correct_arms, gene_matches
from camae.maps.arrays import namespace, rows
from camae.maps.inputs import embeddings
from camae.maps.pairs import Pairs
from camae.maps.perturbation_map import Components, component_options, perturbation_vectors
from camae.maps.retrieval import retrieval

PairsBySource: TypeAlias = Mapping[str, Pairs]
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
)
TVN_BY_PLATE = ALIGNMENTS[-1]
HELD_OUT = "TVN, held out"
# Alignments of the retrieval table. Held out: TVN fitted on half of the controls, the other half are the negatives.
_RETRIEVAL_ALIGNMENTS = ("as given", "TVN", HELD_OUT)
_RETRIEVAL_COLUMNS = ["task", "alignment", "n_groups", "n_retrieved", "fraction_retrieved", "mean_ap"]


@dataclass(frozen=True)
class GeneTables:
    """Gene tables of the chromosome-arm correction. arms: gene -> arm ("chr1p"). zfpkm: gene -> expression."""

    arms: Mapping[str, str]
    zfpkm: Mapping[str, float]


@dataclass
class ScreenProfiles:
    """Profiles of a screen with their metadata.

    x: (n, d) NumPy or CuPy array. perturbation, plate, experiment, target, well: n texts each (None: not known).
    control: n booleans, negative controls. components: how many an alignment keeps (`maps.map_profiles`).
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

    def __post_init__(self) -> None:
        self.x = embeddings(self.x)
        if not self.control.any():
            raise CamaeError(
                "no profile is a negative control; name the column of controls and the value that marks them"
            )

    @property
    def treated(self) -> np.ndarray:
        """(n,) booleans: rows of named perturbations, without controls."""
        return ~self.control & (self.perturbation != "")

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
        return align(self.x, method, batches, control, **options)

    def to_map(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Spherical means of the perturbations with the origin at the controls' mean: vectors (p, k), names (p,)."""
        return perturbation_vectors(z, self.perturbation, self.control)


def recall_by_alignment(screen: ScreenProfiles, pairs: PairsBySource) -> pd.DataFrame:
    """Table 2: recall of every alignment in every source. Columns alignment, source, those of `recall`, n_unknown."""
    parts = []
    for alignment in ALIGNMENTS:
        if alignment.batches == "experiment" and screen.experiment is None:
            continue
        vectors, names = screen.to_map(screen.aligned(alignment))
        table = _recall(screen, vectors, names, pairs)
        parts.append(table.assign(alignment=alignment.label))
    return _leading(pd.concat(parts, ignore_index=True), ["alignment", "source"])


def recall_after_tvn(
    screen: ScreenProfiles,
    pairs: PairsBySource,
    genes: GeneTables | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Table 3: recall after TVN, and after correcting chromosome arms where `genes` are given.

    Order: TVN, arm correction on the wells, spherical mean per gene. Returns the recall table (column step) and the
    arm bias before and after (None without `genes`).
    """
    z = screen.aligned(TVN_BY_PLATE)
    vectors, names = screen.to_map(z)
    parts = [_recall(screen, vectors, names, pairs).assign(step="TVN")]
    bias = None
    if genes is not None:
        step = "TVN, arms corrected"
        screen.add_notes(
            [gene_matches(names, genes.arms, "arms"), gene_matches(names, genes.zfpkm, "expression")]
        )
        before = arm_bias(vectors, names, genes.arms).assign(step="TVN")
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
    """Recall against percentile after TVN (Figure 5, right): source, percentile, recall, n_pairs, n_found."""
    vectors, names = screen.to_map(screen.aligned(TVN_BY_PLATE))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return maps.recall_curve(vectors, names, pairs)


@dataclass(frozen=True)
class _Retrieval:
    """Retrieval on aligned profiles z (n, k). negatives: n booleans, the controls that are ranked against."""

    screen: ScreenProfiles
    z: np.ndarray
    negatives: np.ndarray
    null_size: int
    seed: int

    def perturbations(self) -> pd.DataFrame | None:
        """Replicates against the same plate's controls; None when no perturbation has two replicates."""
        query = self.screen.treated
        hits, messages = self._replicates(
            query | self.negatives, query, self.screen.perturbation, negatives_differ_in="control"
        )
        self.screen.add_notes(messages)
        return hits

    def well_positions(self, well: np.ndarray) -> pd.DataFrame | None:
        """Controls of one position against controls of others; None when no position is there twice."""
        hits, _ = self._replicates(self.negatives, self.negatives, well, negatives_differ_in="group")
        return hits

    def _replicates(
        self, used: np.ndarray, query: np.ndarray, group: np.ndarray, *, negatives_differ_in: str
    ) -> tuple[pd.DataFrame | None, list[str]]:
        """Rows of the same group as positives, negatives from the same plate; and the warnings raised."""
        screen, kept = self.screen, np.flatnonzero(used)
        meta = pd.DataFrame({"group": group, "plate": screen.plate, "control": screen.control}).iloc[kept]
        if meta["group"][query[kept]].value_counts().max() < 2:
            return None, []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            hits = retrieval(
                rows(self.z, kept),
                meta,
                pos_sameby="group",
                pos_diffby=[],
                neg_sameby="plate",
                neg_diffby=negatives_differ_in,
                null_size=self.null_size,
                seed=self.seed,
                query=query[kept],
            )
        return hits, [str(warning.message) for warning in caught]

    def siblings(self, target: np.ndarray, retrieved: np.ndarray) -> pd.DataFrame:
        """Median consensus of the retrieved perturbations; siblings share a target, negatives do not."""
        chosen = np.flatnonzero(np.isin(self.screen.perturbation, retrieved) & ~self.screen.control)
        by = self.screen.perturbation[chosen]
        consensus = aggregate(rows(self.z, chosen), by, "median")
        first = pd.Series(target[chosen]).groupby(by).first().loc[perturbation_names(by)]
        meta = pd.DataFrame({"target": first.replace("", None).to_numpy()})
        try:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore"
                )  # most targets have one compound: that is the data, not a mistake
                return retrieval(
                    consensus,
                    meta,
                    pos_sameby="target",
                    pos_diffby=[],
                    neg_sameby=[],
                    neg_diffby="target",
                    null_size=self.null_size,
                    seed=self.seed,
                    absolute=True,
                    multilabel="target",
                )
        except CamaeError as error:
            self.screen.add_notes([f"Siblings: {error}"])
            return pd.DataFrame({"retrieved": [], "average_precision": []})


def fraction_retrieved(screen: ScreenProfiles, null_size: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """Table 4: task, alignment, n_groups, n_retrieved, fraction_retrieved, mean_ap; empty without replicates.

    "perturbations" ranks replicates against the same plate's controls, for the profiles "as given", and after TVN
    fitted on all controls ("TVN": this leaks, the negatives were fitted) and on half of them, the other half being
    the negatives ("TVN, held out").
    "siblings" (with targets): median consensus of the retrieved perturbations, absolute cosine, negatives share no
    target. "well positions" (with wells): held-out controls that only share a position; what is retrieved there is
    a layout effect, not biology.
    """
    table = []
    for label in _RETRIEVAL_ALIGNMENTS:
        part = _aligned_for_retrieval(screen, label, null_size, seed)
        hits = part.perturbations()
        if hits is None:
            screen.add_notes(["No perturbation has two replicates: Table 4 is left out."])
            return pd.DataFrame()
        table.append(("perturbations", label, *_fraction(hits)))
        if screen.target is not None and hits.retrieved.any():
            retrieved = hits["group"][hits.retrieved].to_numpy(str)
            table.append(("siblings", label, *_fraction(part.siblings(screen.target, retrieved))))
        if screen.well is not None and label == HELD_OUT:
            positions = part.well_positions(screen.well)
            if positions is not None:
                table.append(("well positions", label, *_fraction(positions)))
    return pd.DataFrame(table, columns=_RETRIEVAL_COLUMNS)


def _aligned_for_retrieval(screen: ScreenProfiles, label: str, null_size: int, seed: int) -> _Retrieval:
    """Profiles under an alignment of `_RETRIEVAL_ALIGNMENTS` and the controls that serve as negatives."""
    fitted, negatives = screen.control, screen.control
    if label == HELD_OUT:
        fitted, negatives = split_controls(screen.control, screen.plate, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the rank is among the notes of Table 2
        if label == "as given":
            z = screen.align("none", None, fitted)
        else:
            z = screen.align("tvn", screen.plate, fitted)
    return _Retrieval(screen, z, negatives, null_size, seed)


def _fraction(hits: pd.DataFrame) -> tuple[int, int, float, float]:
    """Groups, retrieved groups, their share (NaN without groups), mean average precision."""
    share = float(hits.retrieved.mean()) if len(hits) else float("nan")
    return len(hits), int(hits.retrieved.sum()), share, float(hits.average_precision.mean())


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
