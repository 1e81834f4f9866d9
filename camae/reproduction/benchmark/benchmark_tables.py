"""The paper's tables from one table of profiles: Table 2 (alignments), Table 3 (arms corrected), Table 4, Figure 5.

Computes and returns data frames; `camae.reproduction.benchmark.run_benchmark` writes them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from camae.errors import CamaeError
from camae.maps.aggregation import aggregate, control_mean, perturbation_names
from camae.maps.alignment import align, split_controls
from camae.maps.arms import arm_bias, correct_arms
from camae.maps.arrays import embeddings, namespace, rows
from camae.maps.recall import recall, recall_curve
from camae.maps.retrieval import retrieval

Pairs = Mapping[str, Any]

# Table 2: label, method, whether it goes by batch ("plate"), by "experiment" or by none.
TABLE_2 = (
    ("No transformation", "none", None),
    ("PCA", "pca", None),
    ("Center by plate", "center", "plate"),
    ("Center by experiment", "center", "experiment"),
    ("Standardize by plate", "standardize", "plate"),
    ("Standardize by experiment", "standardize", "experiment"),
    ("PCA+Standardize by plate", "pca_standardize", "plate"),
    ("PCA+Standardize by experiment", "pca_standardize", "experiment"),
    ("TVN", "tvn", "plate"),
)


@dataclass
class Screen:
    """Profiles and what their rows are: x (n, d); perturbation, plate, experiment (or None) text; control booleans."""

    x: Any
    perturbation: np.ndarray
    plate: np.ndarray
    control: np.ndarray
    experiment: np.ndarray | None = None
    target: np.ndarray | None = None
    well: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.x = embeddings(self.x)
        if not self.control.any():
            raise CamaeError("No profile is a negative control; name the control column and its value.")

    def batch(self, unit: str | None) -> np.ndarray | None:
        return {None: None, "plate": self.plate, "experiment": self.experiment}[unit]

    def aligned(self, method: str, unit: str | None) -> Any:
        """The profiles aligned on the controls; warnings (dropped null components) are kept in `notes`."""
        control = None if method == "none" else self.control
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            z = align(self.x, method, self.batch(unit), control)
        self.notes += [str(w.message) for w in caught if str(w.message) not in self.notes]
        return z

    def to_map(self, z: Any) -> tuple[Any, np.ndarray]:
        """Spherical means of the perturbations, origin at the controls' mean: (vectors, names)."""
        chosen = np.flatnonzero(~self.control & (self.perturbation != ""))
        by = self.perturbation[chosen]
        return aggregate(rows(z, chosen), by, origin=control_mean(z, self.control)), perturbation_names(by)


def table_2(screen: Screen, pairs: Pairs, bootstrap: int = 0, seed: int = 0) -> pd.DataFrame:
    """Recall of every alignment in every source: columns alignment, source, and those of `recall`, n_unknown."""
    parts = []
    for label, method, unit in TABLE_2:
        if unit == "experiment" and screen.experiment is None:
            continue
        vectors, names = screen.to_map(screen.aligned(method, unit))
        parts.append(_scored(vectors, names, pairs, bootstrap, seed).assign(alignment=label))
    return _first(pd.concat(parts, ignore_index=True), ["alignment", "source"])


def table_3(
    screen: Screen,
    pairs: Pairs,
    arms: Mapping[str, str] | None = None,
    zfpkm: Mapping[str, float] | None = None,
    bootstrap: int = 0,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Recall after TVN, and after correcting chromosome arms where `arms` and `zfpkm` are given.

    Order: TVN, arm correction on the wells, spherical mean per gene. Returns the recall table (column step) and the
    arm bias before and after (None without arms).
    """
    z = screen.aligned("tvn", "plate")
    vectors, names = screen.to_map(z)
    parts, bias = [_scored(vectors, names, pairs, bootstrap, seed).assign(step="TVN")], None
    if arms is not None and zfpkm is not None:
        before = arm_bias(vectors, names, arms).assign(step="TVN")
        vectors, names = screen.to_map(_corrected(screen, z, arms, zfpkm))
        step = "TVN, arms corrected"
        parts.append(_scored(vectors, names, pairs, bootstrap, seed).assign(step=step))
        bias = pd.concat([before, arm_bias(vectors, names, arms).assign(step=step)], ignore_index=True)
    return _first(pd.concat(parts, ignore_index=True), ["step", "source"]), bias


def _corrected(screen: Screen, z: Any, arms: Mapping[str, str], zfpkm: Mapping[str, float]) -> Any:
    """z with each arm's mean over unexpressed genes subtracted from the wells of that arm.

    The mean is taken over genes, not wells, so that a gene with more replicates does not weigh more: the shift is
    learned on gene means about the controls and applied to the wells.
    """
    chosen = np.flatnonzero(~screen.control & (screen.perturbation != ""))
    by = screen.perturbation[chosen]
    mean = aggregate(rows(z, chosen), by, "mean", origin=control_mean(z, screen.control))
    names = perturbation_names(by)
    shift = correct_arms(mean, names, arms, zfpkm) - mean
    out = z.copy()
    xp = namespace(out)
    out[xp.asarray(chosen)] += shift[xp.asarray(np.searchsorted(names, by))]
    return out


def curves(screen: Screen, pairs: Pairs) -> pd.DataFrame:
    """Recall against percentile after TVN (Figure 5, right): source, percentile, recall, n_pairs, n_found."""
    vectors, names = screen.to_map(screen.aligned("tvn", "plate"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return recall_curve(vectors, names, pairs)


def table_4(screen: Screen, null_size: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """Fraction retrieved: task, alignment, n_groups, n_retrieved, fraction_retrieved, mean_ap.

    "perturbations" ranks replicates against the same plate's controls, for the profiles "as given", and after TVN
    fitted on all controls ("TVN": this leaks, the negatives were fitted) and on half of them, the other half being
    the negatives ("TVN, held out").
    "siblings" (with targets): median consensus of the retrieved perturbations, absolute cosine, negatives share no
    target. "well positions" (with wells): held-out controls that only share a position; what is retrieved there is
    a layout effect, not biology.
    """
    table = []
    fit, held = split_controls(screen.control, screen.plate, seed=seed)
    for kind, method, fitted, negatives in (
        ("as given", "none", None, screen.control),
        ("TVN", "tvn", screen.control, screen.control),
        ("TVN, held out", "tvn", fit, held),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Table 2 has noted the rank
            z = align(screen.x, method, screen.plate, fitted)
        meta = pd.DataFrame({"pert": screen.perturbation, "plate": screen.plate, "control": screen.control})
        kept = np.flatnonzero((~screen.control & (screen.perturbation != "")) | negatives)
        hits = _retrieved(z, meta, kept, "pert", null_size, seed)
        if hits is None:
            screen.notes.append("No perturbation has two replicates: Table 4 is left out.")
            return pd.DataFrame()
        screen.notes += [note for note in hits.attrs["notes"] if note not in screen.notes]
        table.append(("perturbations", kind, *_summary(hits)))
        if screen.target is not None and hits.retrieved.any():
            table.append(("siblings", kind, *_summary(_siblings(screen, z, hits, null_size, seed))))
        if screen.well is not None and kind == "TVN, held out":
            meta["well"] = screen.well
            positions = _retrieved(z, meta, np.flatnonzero(negatives), "well", null_size, seed, ["well"])
            if positions is not None:
                table.append(("well positions", kind, *_summary(positions)))
    return pd.DataFrame(
        table, columns=["task", "alignment", "n_groups", "n_retrieved", "fraction_retrieved", "mean_ap"]
    )


def _retrieved(
    z: Any,
    meta: pd.DataFrame,
    kept: np.ndarray,
    by: str,
    null_size: int,
    seed: int,
    neg_diffby: Any = ("control",),
) -> pd.DataFrame | None:
    part = meta.iloc[kept]
    query = np.ones(len(kept), bool) if by == "well" else ~part.control.to_numpy(bool)
    if part[by][query].value_counts().max() < 2:
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hits = retrieval(rows(z, kept), part, by, [], "plate", list(neg_diffby), null_size, seed, query=query)
    hits.attrs["notes"] = [str(w.message) for w in caught]
    return hits


def _siblings(screen: Screen, z: Any, hits: pd.DataFrame, null_size: int, seed: int) -> pd.DataFrame:
    active = hits.pert[hits.retrieved].to_numpy(str)
    chosen = np.flatnonzero(np.isin(screen.perturbation, active) & ~screen.control)
    by = screen.perturbation[chosen]
    consensus = aggregate(rows(z, chosen), by, "median")
    assert screen.target is not None
    first = pd.Series(screen.target[chosen]).groupby(by).first().loc[perturbation_names(by)]
    meta = pd.DataFrame({"target": first.replace("", None).to_numpy()})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # most targets have one compound: that is the data, not a mistake
            return retrieval(
                consensus,
                meta,
                "target",
                [],
                [],
                "target",
                null_size,
                seed,
                absolute=True,
                multilabel="target",
            )
    except CamaeError as error:
        screen.notes.append(f"Siblings: {error}")
        return pd.DataFrame({"retrieved": [], "average_precision": []})


def _summary(hits: pd.DataFrame) -> tuple[int, int, float, float]:
    share = float(hits.retrieved.mean()) if len(hits) else float("nan")
    return len(hits), int(hits.retrieved.sum()), share, float(hits.average_precision.mean())


def _scored(vectors: Any, names: np.ndarray, pairs: Pairs, bootstrap: int, seed: int) -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pairs with unknown names are counted in n_unknown
        scores = recall(vectors, names, pairs, bootstrap=bootstrap, seed=seed)
    unknown = [scores.attrs["n_unknown"][source] for source in scores.index]
    scores.attrs = {}
    return scores.assign(n_unknown=unknown).rename_axis("source").reset_index()


def _first(table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    return table[[*names, *(name for name in table.columns if name not in names)]]
