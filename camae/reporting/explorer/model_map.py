"""Map of one model as the explorer shows it: vectors, metadata, doses and wells of every perturbation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from camae import maps
from camae.errors import CamaeError
from camae.maps.aggregation import control_mean, group_means
from camae.maps.alignment import align
from camae.maps.arrays import unit_rows
from camae.maps.pairs import PairSources
from camae.maps.perturbation_map import (
    Components,
    check_components,
    component_options,
    perturbation_vectors,
)
from camae.maps.profiles import column
from camae.maps.recall import recall_curve
from camae.maps.screens import Screen
from camae.reporting.explorer.layout import Floats, compact, heat_map_order, layouts

SEVERAL = "several values"


@dataclass(frozen=True)
class Doses:
    """Doses of the perturbations, one entry for each dose of each perturbation.

    row: perturbation; dose: in the column's unit; strength: as in ModelMap; cosine: of the dose's vector with that of
    the whole perturbation; wells: how many. unread: texts of wells' doses that are no numbers; these are left out.
    """

    column: str
    row: npt.NDArray[np.int64]
    dose: npt.NDArray[np.float64]
    strength: npt.NDArray[np.float64]
    cosine: npt.NDArray[np.float64]
    wells: npt.NDArray[np.int64]
    unread: list[str]


@dataclass(frozen=True)
class ModelMap:
    """Map of one model, n perturbations.

    vectors: (n, k), cosines of `maps.map_screen`'s vectors within `layout.COSINE_ERROR`. order: rows of the heat map.
    strength: distance of the mean of a perturbation's aligned profiles from the controls' mean, in units of the root
    mean square distance of a control. wells: profiles of each perturbation. metadata: column -> n texts.
    """

    name: str
    names: npt.NDArray[np.str_]
    vectors: Floats
    order: npt.NDArray[np.int64]
    layouts: dict[str, Floats]
    strength: npt.NDArray[np.float64]
    wells: npt.NDArray[np.int64]
    metadata: dict[str, list[str]]
    doses: Doses | None
    notes: list[str]
    curves: pd.DataFrame | None = None
    recall: pd.DataFrame | None = None


def model_map(
    name: str,
    screen: Screen,
    method: str,
    components: Components,
    layout: str,
    dose: str | None,
    pairs: PairSources | None,
) -> ModelMap:
    """Map of one model from its profiles, made as `maps.map_screen` makes it. pairs: known ones, None for no recall."""
    check_components(method, components)
    options = component_options(method, screen.x.shape[1], screen.control, components)
    z = align(screen.x, method, screen.plate, screen.control, perturbation=screen.perturbation, **options)
    vectors, names = perturbation_vectors(z, screen.perturbation, screen.control)
    unit = unit_rows(vectors)
    rows = np.flatnonzero(~screen.control & (screen.perturbation != ""))
    row_of = np.searchsorted(names, screen.perturbation[rows])
    members = [
        rows[index] for index in np.split(np.argsort(row_of, kind="stable"), _bounds(row_of, len(names)))
    ]
    origin = control_mean(z, screen.control)
    spread = (
        float(np.sqrt(np.mean(np.sum((z[screen.control] - origin) ** 2, axis=1, dtype=np.float64)))) or 1.0
    )
    scale = (z, origin, spread)
    return ModelMap(
        name,
        names,
        compact(unit.astype(np.float32)),
        heat_map_order(unit.astype(np.float32)),
        layouts(unit.astype(np.float32), layout),
        _strength(scale, members),
        np.array([len(index) for index in members]),
        _metadata(screen, members),
        None if dose is None else _doses(screen, dose, names, unit, scale),
        list(screen.notes),
        None if pairs is None else recall_curve(vectors, names, pairs),
        None if pairs is None else maps.recall(vectors, names, pairs),
    )


def _bounds(row_of: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.int64]:
    """Where the sorted rows of one perturbation end and those of the next begin."""
    return np.cumsum(np.bincount(row_of, minlength=n))[:-1]


_Scale = tuple[np.ndarray, np.ndarray, float]  # aligned profiles, the controls' mean, the controls' spread


def _strength(scale: _Scale, members: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.float64]:
    z, origin, spread = scale
    return np.linalg.norm(group_means(z, members).astype(np.float64) - origin, axis=1) / spread


def _metadata(screen: Screen, members: list[npt.NDArray[np.int64]]) -> dict[str, list[str]]:
    """Texts of the columns that say the same in all wells of some perturbation, and not the same of all of them."""
    rows = np.concatenate(members)
    out: dict[str, list[str]] = {}
    for name in map(str, screen.meta.columns):
        text = column(screen.meta, name, "metadata")
        if (text[rows] == screen.perturbation[rows]).all():
            continue  # the names once more
        found = [_shared(text[index]) for index in members]
        if len(set(found)) > 1:
            out[name.removeprefix("Metadata_")] = found
    return out


def _shared(texts: npt.NDArray[np.str_]) -> str:
    return str(texts[0]) if (texts == texts[0]).all() else SEVERAL


def _doses(screen: Screen, name: str, names: npt.NDArray[np.str_], unit: np.ndarray, scale: _Scale) -> Doses:
    text = column(screen.meta, name, "dose")
    number = pd.to_numeric(pd.Series(text), errors="coerce").to_numpy(np.float64)
    treated = ~screen.control & (screen.perturbation != "")
    read = treated & np.isfinite(number)
    if not read.any():
        raise CamaeError(f"the column {name} holds no number in any row of a perturbation, so it is no dose")
    keys, code = np.unique(
        np.stack([np.searchsorted(names, screen.perturbation), number])[:, read], axis=1, return_inverse=True
    )
    rows = np.flatnonzero(read)
    members = [
        rows[index] for index in np.split(np.argsort(code, kind="stable"), _bounds(code, keys.shape[1]))
    ]
    label = np.full(len(text), "", dtype=object)
    for position, index in enumerate(members):
        label[index] = f"{position:09d}"
    vectors, _ = perturbation_vectors(scale[0], label.astype(str), screen.control)
    row = keys[0].astype(np.int64)
    return Doses(
        name.removeprefix("Metadata_"),
        row,
        keys[1],
        _strength(scale, members),
        np.sum(unit_rows(vectors) * unit[row], axis=1, dtype=np.float64),
        np.array([len(index) for index in members]),
        [str(t) for t in text[treated & ~np.isfinite(number)] if t != ""],
    )
