"""Retrieval tables of one profile table: fraction retrieved (the paper's Table 4), activity and calibration."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import pandas as pd

from camae.errors import CamaeError
from camae.maps.activity import activity, activity_agreement, check_activity_options
from camae.maps.aggregation import aggregate, perturbation_names
from camae.maps.alignment import split_controls
from camae.maps.arrays import rows
from camae.maps.calibration import calibration, calibration_summary
from camae.maps.distances import Distance, check_distance
from camae.maps.nulls import Null
from camae.maps.retrieval import retrieval
from camae.maps.significance import check_null_options
from camae.reproduction.benchmark.benchmark_tables import ScreenProfiles

AS_GIVEN, TVN, HELD_OUT = "as given", "TVN", "TVN, held out"
# Held out: TVN fitted on half of the controls, the other half are the negatives.
_ALIGNMENTS = (AS_GIVEN, TVN, HELD_OUT)
# Where the controls compared with were not fitted, so that p values mean something.
HONEST = (AS_GIVEN, HELD_OUT)
RANDOM, POSITIONS = "random groups", "well positions"
_COLUMNS = [
    "task",
    "alignment",
    "n_groups",
    "n_retrieved",
    "fraction_retrieved",
    "mean_ap",
    "mean_normalized_ap",
    "smallest_p",
]


@dataclass(frozen=True)
class RetrievalOptions:
    """Options of retrieval, as in `maps.retrieval` and `maps.activity`. permutations: of activity and calibration.

    Raises CamaeError for what these refuse.
    """

    null_size: int = 10_000
    seed: int = 0
    null: Null = "auto"
    distance: Distance = "cosine"
    threshold: float = 0.05
    permutations: int = 1000

    def __post_init__(self) -> None:
        check_null_options(self.null, self.threshold, self.null_size, self.seed)
        check_activity_options(self.threshold, self.permutations)
        check_distance(self.distance)


class _NullKeywords(TypedDict):
    null_size: int
    seed: int
    null: Null
    threshold: float


@dataclass(frozen=True)
class AlignedForRetrieval:
    """Aligned profiles z (n, k). negatives: n booleans, the controls that are ranked against."""

    screen: ScreenProfiles
    z: np.ndarray
    negatives: np.ndarray
    options: RetrievalOptions

    @classmethod
    def of(cls, screen: ScreenProfiles, label: str, options: RetrievalOptions) -> AlignedForRetrieval:
        """Profiles under an alignment of the table, and the controls that serve as negatives."""
        fitted, negatives = screen.control, screen.control
        if label == HELD_OUT:
            fitted, negatives = split_controls(screen.control, screen.plate, seed=options.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the rank is among the notes of Table 2
            if label == AS_GIVEN:
                z = screen.align("none", None, fitted)
            else:
                z = screen.align("tvn", screen.plate, fitted)
        return cls(screen, z, negatives, options)

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
                query=query[kept],
                distance=self.options.distance,
                **self._null,
            )
        return hits, [str(warning.message) for warning in caught]

    @property
    def _null(self) -> _NullKeywords:
        o = self.options
        return {"null_size": o.null_size, "seed": o.seed, "null": o.null, "threshold": o.threshold}

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
                    absolute=self.screen.modality == "compound",
                    multilabel="target",
                    **self._null,
                )
        except CamaeError as error:
            self.screen.add_notes([f"Siblings: {error}"])
            return pd.DataFrame({"retrieved": [], "average_precision": []})

    def activity(self) -> pd.DataFrame:
        """Activity of the perturbations by three measures, against the negatives of their plates."""
        used = np.flatnonzero(self.screen.treated | self.negatives)
        o, screen = self.options, self.screen
        with _notes_of(screen):
            return activity(
                rows(self.z, used),
                screen.perturbation[used],
                self.negatives[used],
                screen.plate[used],
                permutations=o.permutations,
                threshold=o.threshold,
                seed=o.seed,
                distance=o.distance,
            )

    def calibration(self, group: np.ndarray | None) -> pd.DataFrame:
        """p values of the negatives in groups against each other; empty where no group has two."""
        o = self.options
        try:
            return calibration(
                self.z,
                self.negatives,
                self.screen.plate,
                group,
                seed=o.seed,
                distance=o.distance,
                permutations=o.permutations,
                null_size=o.null_size,
            )
        except CamaeError as error:
            self.screen.add_notes([f"Calibration: {error}"])
            return pd.DataFrame()


@contextmanager
def _notes_of(screen: ScreenProfiles) -> Iterator[None]:
    """Warnings raised inside become notes of the screen."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    screen.add_notes([str(warning.message) for warning in caught])


def fraction_retrieved(
    screen: ScreenProfiles, null_size: int = 10_000, seed: int = 0, options: RetrievalOptions | None = None
) -> pd.DataFrame:
    """Table 4: task, alignment, n_groups, n_retrieved, fraction_retrieved, mean_ap, mean_normalized_ap and smallest_p.

    "perturbations" ranks replicates against the same plate's controls, for the profiles "as given", and after TVN
    fitted on all controls ("TVN": this leaks, the negatives were fitted) and on half of them, the other half being
    the negatives ("TVN, held out").
    "siblings" (with targets): median consensus of the retrieved perturbations, cosine (its absolute value for
    compounds), negatives share no target; none for ORFs. "well positions" (with wells): controls that only share a
    position, as given and held out; what is retrieved there is a layout effect, not biology. smallest_p: the largest
    of the groups' smallest attainable p.
    options: `null_size` and `seed` by default. Empty without replicates.
    """
    options = options or RetrievalOptions(null_size, seed)
    table = []
    for label in _ALIGNMENTS:
        part = AlignedForRetrieval.of(screen, label, options)
        hits = part.perturbations()
        if hits is None:
            screen.add_notes(["No perturbation has two replicates: Table 4 is left out."])
            return pd.DataFrame()
        table.append(("perturbations", label, *_fraction(hits)))
        if screen.target is not None and screen.modality != "orf" and hits.retrieved.any():
            retrieved = hits["group"][hits.retrieved].to_numpy(str)
            table.append(("siblings", label, *_fraction(part.siblings(screen.target, retrieved))))
        if screen.well is not None and label in HONEST:
            positions = part.well_positions(screen.well)
            if positions is not None:
                table.append((POSITIONS, label, *_fraction(positions)))
    return pd.DataFrame(table, columns=_COLUMNS)


def _fraction(hits: pd.DataFrame) -> tuple[int, int, float, float, float, float]:
    """Groups, retrieved groups, their share (NaN without groups), mean average precisions, largest smallest p."""
    if not len(hits):
        nan = float("nan")
        return 0, 0, nan, nan, nan, nan
    ap, normalized = (
        float(hits[name].mean()) for name in ("average_precision", "normalized_average_precision")
    )
    found, smallest = int(hits.retrieved.sum()), float(hits.smallest_p_value.max())
    return len(hits), found, found / len(hits), ap, normalized, smallest


def activity_tables(screen: ScreenProfiles, options: RetrievalOptions) -> dict[str, pd.DataFrame]:
    """Activity by average precision, Mahalanobis and energy distance, and calibration of all p values on controls.

    Profiles as given and after TVN with controls held out. Tables by name: activity (alignment and `maps.activity`),
    agreement (alignment and `maps.activity_agreement`), calibration (alignment, groups: random or by well position,
    and `maps.calibration_summary`), calibration_p_values (alignment, groups, test, p_value).
    """
    found: dict[str, list[pd.DataFrame]] = {}

    def add(name: str, table: pd.DataFrame, **columns: str) -> None:
        if len(table):
            for place, (column, value) in enumerate(columns.items()):
                table.insert(place, column, value)
            found.setdefault(name, []).append(table)

    for label in HONEST:
        part = AlignedForRetrieval.of(screen, label, options)
        if part.negatives.any() and screen.treated.any():
            measured = part.activity()
            add("agreement", activity_agreement(measured), alignment=label)
            add("activity", measured, alignment=label)
        groups = {RANDOM: None} | ({} if screen.well is None else {POSITIONS: screen.well})
        for kind, group in groups.items():
            p = part.calibration(group)
            if len(p):
                add("calibration", calibration_summary(p), alignment=label, groups=kind)
                add("calibration_p_values", p[["test", "p_value"]].copy(), alignment=label, groups=kind)
    return {name: pd.concat(parts, ignore_index=True) for name, parts in found.items()}
