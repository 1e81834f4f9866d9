"""Mechanism-of-action accuracy of one profile table: the mechanism of the nearest treatment of another compound."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd

from camae.errors import CamaeError
from camae.maps.aggregation import aggregate, perturbation_names
from camae.maps.arrays import rows
from camae.maps.probes import nearest_neighbor
from camae.reproduction.benchmark.benchmark_tables import ALIGNMENTS, AlignmentRow, ScreenProfiles

SHUFFLES = 20
NOT_COMPOUND, NOT_BATCH = "not same compound", "not same compound, not same batch"


def mechanism_accuracy(screen: ScreenProfiles, seed: int = 0) -> pd.DataFrame:
    """1-nearest-neighbor accuracy of mechanisms of action, by alignment (Ljosa et al. 2013; Ando et al. 2017).

    A treatment (compound and dose) is the mean of its aligned wells and is assigned the mechanism of the treatment
    that is nearest by cosine, which must be of another compound; for "not same batch" a treatment is a mean in each
    batch (experiment, or plate), and the nearest must be of another batch as well.

    Treatments without a mechanism are left out. seed: of the shuffled mechanisms.
    Returns alignment, neighbor, accuracy, shuffled (mean accuracy with mechanisms shuffled over compounds), majority
    (share of the largest mechanism), n_treatments, n_compounds, n_mechanisms. A neighbor rule that leaves no neighbor
    is a note. Empty where mechanisms are not known. Raises CamaeError where no treated well has one.
    """
    mechanism, dose = screen.mechanism, screen.dose
    compound = screen.perturbation if screen.compound is None else screen.compound
    if mechanism is None:
        return pd.DataFrame()
    kept = np.flatnonzero(~screen.control & (mechanism != "") & (compound != ""))
    if len(kept) == 0:
        raise CamaeError("no treated well has both a mechanism and a compound; check the columns of both")
    treatment = (
        compound if dose is None else np.array([f"{a}@{b}" for a, b in zip(compound, dose, strict=True)])
    )
    batch = screen.plate if screen.experiment is None else screen.experiment
    table = []
    for alignment in _alignments(screen):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the rank is among the notes of Table 2
                z = rows(screen.aligned(alignment), kept)
        except CamaeError as error:
            screen.add_notes([f"Mechanisms, {alignment.label}: {error}"])
            continue
        for neighbor in (NOT_COMPOUND, NOT_BATCH):
            by = treatment[kept]
            if neighbor == NOT_BATCH:
                by = np.array([f"{a} in {b}" for a, b in zip(by, batch[kept], strict=True)])
            first = (
                pd.DataFrame({"m": mechanism[kept], "c": compound[kept], "b": batch[kept]})
                .groupby(by)
                .first()
            )
            first = first.loc[perturbation_names(by)]
            barred = first.b if neighbor == NOT_BATCH else None
            try:
                scores = _scores(aggregate(z, by, "mean"), first, barred, seed)
            except CamaeError as error:
                screen.add_notes([f"Mechanisms, {neighbor}: {error}"])
                continue
            table.append({"alignment": alignment.label, "neighbor": neighbor} | scores)
    return pd.DataFrame(table)


def _alignments(screen: ScreenProfiles) -> list[AlignmentRow]:
    """Those of Table 2, and TVN by experiment where experiments are known."""
    if screen.experiment is None:
        return [row for row in ALIGNMENTS if row.batches != "experiment"]
    return [*ALIGNMENTS, AlignmentRow("TVN by experiment", "tvn", "experiment")]


def _scores(v: np.ndarray, first: pd.DataFrame, batch: pd.Series | None, seed: int) -> dict[str, float | int]:
    found = nearest_neighbor(v, first.m, exclude=first.c, batch=batch)
    rng = np.random.default_rng(seed)
    of_compound = first.groupby("c").m.first()
    shuffled = []
    for _ in range(SHUFFLES):
        other = dict(zip(of_compound.index, rng.permutation(of_compound.to_numpy()), strict=True))
        shuffled.append(nearest_neighbor(v, first.c.map(other), exclude=first.c, batch=batch)["accuracy"])
    return {
        "accuracy": found["accuracy"],
        "shuffled": float(np.mean(shuffled)),
        "majority": float(first.m.value_counts().max() / len(first)),
        "n_treatments": int(found["n_rows"]),
        "n_compounds": int(first.c.nunique()),
        "n_mechanisms": int(first.m.nunique()),
    }
