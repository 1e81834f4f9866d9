"""Table 4 by condition (cell type, time, modality), and its mean and spread over them, as the paper prints it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pandas as pd

from camae.errors import CamaeError
from camae.maps.arrays import rows
from camae.reproduction.benchmark.benchmark_tables import Modality, ScreenProfiles
from camae.reproduction.benchmark.retrieval_tables import RetrievalOptions, fraction_retrieved

# What words of a modality column mean. Siblings of compounds share a target and may look alike or opposite; guides of
# one gene look alike; an overexpressed gene has one reagent and no siblings.
_WORDS: dict[str, Modality] = {
    "compound": "compound", "compounds": "compound", "trt_cp": "compound", "small molecule": "compound",
    "crispr": "crispr", "sgrna": "crispr", "guide": "crispr", "trt_xpr": "crispr", "knockout": "crispr",
    "orf": "orf", "trt_oe": "orf", "overexpression": "orf",
}  # fmt: skip


def modality(word: str) -> Modality:
    """Kind of perturbation that a word names. Raises CamaeError for another word."""
    found = _WORDS.get(word.strip().lower())
    if found is None:
        raise CamaeError(f"modality '{word}' is not known; write compound, crispr or orf")
    return found


def retrieved_by_condition(
    screen: ScreenProfiles, options: RetrievalOptions
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Table 4, and its mean over conditions (empty where the screen has one).

    Conditions are the distinct values of `screen.condition`, divided by `screen.modalities` where they hold several.
    The first table has a column condition before those of `fraction_retrieved`, unless there is one condition; the
    second has task, alignment, n_conditions, mean and sd (ddof 1) of the fraction retrieved. ORFs have no siblings.
    """
    parts = dict(_conditions(screen))
    if len(parts) == 1 and screen.condition is None:
        (part,) = parts.values()
        table = fraction_retrieved(part, options=options)
        screen.add_notes(part.notes)
        return table, pd.DataFrame()
    tables = []
    for name, part in parts.items():
        table = fraction_retrieved(part, options=options)
        screen.add_notes([f"{name}: {note}" for note in part.notes])
        if len(table):
            table.insert(0, "condition", name)
            tables.append(table)
    if not tables:
        return pd.DataFrame(), pd.DataFrame()
    every = pd.concat(tables, ignore_index=True)
    fraction = every.groupby(["task", "alignment"], sort=False)["fraction_retrieved"]
    mean = fraction.agg(n_conditions="count", mean="mean", sd="std").reset_index()
    return every, mean


def _conditions(screen: ScreenProfiles) -> Iterator[tuple[str, ScreenProfiles]]:
    """Rows of each condition and modality, by name."""
    n = len(screen.perturbation)
    condition = np.full(n, "") if screen.condition is None else screen.condition
    if (condition[screen.treated] == "").any() and screen.condition is not None:
        row = int(np.flatnonzero(screen.treated & (condition == ""))[0])
        raise CamaeError(
            f"the condition is empty in row {row}; every treated well needs one, or its rows are left out"
        )
    for name in np.unique(condition[screen.treated]).tolist():
        inside = condition == name
        kinds = [screen.modality]
        if screen.modalities is not None:
            words = screen.modalities
            kinds = sorted({modality(word) for word in np.unique(words[inside & screen.treated])})
        for kind in kinds:
            used = inside
            if screen.modalities is not None and len(kinds) > 1:
                own = np.array([word != "" and _WORDS.get(word.strip().lower()) == kind for word in words])
                used = inside & (screen.control | own)
            if not (used & screen.control).any():
                raise CamaeError(
                    f"condition {name} has no negative controls among its {int(used.sum())} wells"
                )
            label = " ".join(part for part in (name, kind if len(kinds) > 1 else "") if part) or "all wells"
            yield label, _rows(screen, used, kind)


def _rows(screen: ScreenProfiles, chosen: np.ndarray, kind: Modality) -> ScreenProfiles:
    """The screen with some of its rows (n booleans), of one modality."""
    if chosen.all():
        return dataclasses.replace(screen, modality=kind, notes=[])
    index = np.flatnonzero(chosen)
    texts = {
        field.name: getattr(screen, field.name)[index]
        for field in dataclasses.fields(screen)
        if isinstance(getattr(screen, field.name), np.ndarray) and field.name != "x"
    }
    return dataclasses.replace(screen, x=rows(screen.x, index), modality=kind, notes=[], **texts)
