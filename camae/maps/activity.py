"""Activity of perturbations: which differ from the controls, by three measures, and where these disagree."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
import pandas as pd

from camae.errors import CamaeError
from camae.maps.arrays import Array, Labels, Mask, groups, rows, takes_tensors, to_numpy
from camae.maps.distances import Distance
from camae.maps.inputs import (
    COUNT,
    batches,
    check_metadata,
    check_number,
    check_result,
    check_seed,
    check_threshold,
    control_rows,
    embeddings,
    is_number,
    labels,
    listing,
)
from camae.maps.label_exchange import MEASURES, Pool
from camae.maps.nulls import draws_needed, q_values
from camae.maps.replicates import ReplicateUnit, independent_rows

SHORT = {"average_precision": "average precision", "mahalanobis": "Mahalanobis", "energy": "energy"}
_COLUMNS = ("camae_by", "camae_control", "camae_batch")  # beside the metadata


@takes_tensors
def activity(
    x: Array,
    by: Labels,
    control: Mask,
    batch: Labels | None = None,
    *,
    permutations: int = 1000,
    threshold: float = 0.05,
    seed: int = 0,
    distance: Distance = "cosine",
    max_controls: int = 512,
    max_replicates: int = 64,
    meta: pd.DataFrame | None = None,
    unit: ReplicateUnit = None,
) -> pd.DataFrame:
    """Activity of perturbations by average precision, Mahalanobis distance and energy distance, each with a p value.

    Each measure compares a perturbation's replicates with the controls of their own batches. Average precision asks
    whether replicates look like each other more than like controls, Mahalanobis distance whether their mean lies
    apart from the controls', energy distance whether their distribution does. p values are permutation tests of the
    perturbation as a whole (labels exchanged within batches, `camae.maps.label_exchange`), so they are uniform for
    perturbations that do nothing, whatever the features' distribution or correlation.

    Parameters
    ----------
    x : (n, d) array
        Profiles, with the origin at the negative controls for cosines; NumPy, CuPy or torch. Aligned profiles must
        not have been aligned on the controls they are compared with: see `split_controls`.
    by : n labels
        Perturbation of each row; the controls' own labels are not read.
    control : n booleans
        True for the negative controls compared with.
    batch : n labels, optional
        Plate of each row. Labels are exchanged, negatives ranked and means taken within it; by default all rows are
        of one batch.
    permutations : int
        Choices of labels, at the fewest; more are drawn until Benjamini-Hochberg can decide at `threshold`.
    threshold : float
        False-discovery rate, over the perturbations, of each measure.
    seed : int
        Of the choices.
    distance : {"cosine", "correlation", "euclidean"}
        Of average precision.
    max_controls, max_replicates : int
        Controls of a perturbation's batches, and its own rows, beyond these are left out at random (equally from each
        batch).
    meta : DataFrame, optional
        n rows with Metadata_Plate and Metadata_Well. Several rows of one well and perturbation are then refused, as
        sites of one well are no replicates.
    unit : {"well", "site"}, optional
        "well" averages such rows, "site" counts them as replicates.

    Returns
    -------
    DataFrame
        One row for each perturbation, sorted: perturbation, n_replicates, n_controls; of each measure its value,
        p_value and q_value (average_precision, average_precision_p_value, ...; average precision is NaN with one
        replicate); smallest_p_value; active_by: "all", "none", or the measures with q < threshold ("average precision
        only", "Mahalanobis and energy", ...).

    Raises
    ------
    CamaeError
        When no row is a control, no perturbation has a control in its batch, or (with `meta`) rows are of one well.

    Warns
    -----
    UserWarning
        Of rows whose batch has no control, which are left out.

    References
    ----------
    Phipson and Smyth 2010 (permutation p values); Ledoit and Wolf 2004; Szekely and Rizzo 2013; Kalinin et al. 2025.
    """
    check_activity_options(threshold, permutations, seed)
    if not (is_number(max_controls, COUNT, whole=True) and is_number(max_replicates, COUNT, whole=True)):
        raise CamaeError(f"max_controls {max_controls} and max_replicates {max_replicates} must be 1 or more")
    x = embeddings(x)
    n = x.shape[0]
    by_N, chosen = labels(by, n, "by"), control_rows(control, n)
    batch_N = np.zeros(n, dtype=np.intp) if batch is None else pd.factorize(batches(batch, n))[0]
    is_control = np.isin(np.arange(n), chosen)
    if meta is not None:
        x, by_N, is_control, batch_N = _by_well(x, by_N, is_control, batch_N, meta, unit)
    table = exchange_tests(
        *(x, by_N, batch_N, is_control),
        first=permutations,
        threshold=threshold,
        seed=seed,
        distance=distance,
        max_controls=max_controls,
        max_replicates=max_replicates,
    )
    return _with_decisions(table, threshold)


def check_activity_options(threshold: float, permutations: int, seed: int = 0) -> None:
    """Raise CamaeError for a threshold that is no rate, or numbers that cannot count or seed permutations."""
    check_threshold(threshold)
    if not is_number(permutations, COUNT, whole=True):
        raise CamaeError(f"permutations {permutations} choose no labels; give 1 or more, whole")
    check_seed(seed)


def exchange_tests(
    x: Array,
    by_N: npt.NDArray[np.str_],
    batch_N: npt.NDArray[np.intp],
    is_control: npt.NDArray[np.bool_],
    *,
    first: int,
    threshold: float,
    seed: int,
    distance: Distance,
    max_controls: int,
    max_replicates: int,
    others: npt.NDArray[np.bool_] | None = None,
) -> pd.DataFrame:
    """Measures and p values of each perturbation. others: rows of perturbations, all that are no controls by default.

    A row that is both a control and one of `others` is a control of every perturbation but its own.
    """
    asked = np.flatnonzero(~is_control if others is None else others)
    covered = np.isin(batch_N, batch_N[is_control])
    left = asked[~covered[asked]]
    asked = asked[covered[asked]]
    if len(asked) == 0:
        raise CamaeError("no perturbation has a control in its batch; check control= and batch=")
    if len(left):
        warnings.warn(
            f"{len(left)} rows are of batches without a control and are left out (first: row {left[0]})",
            stacklevel=5,  # past `takes_tensors`
        )
    names, members = groups(by_N[asked])
    last = draws_needed(len(names), threshold, first)
    found = []
    for number, (name, index) in enumerate(zip(names, members, strict=True)):
        own = asked[index]
        negative = np.flatnonzero(is_control & np.isin(batch_N, batch_N[own]))
        negative = np.setdiff1d(negative, own)
        rng = np.random.default_rng([seed, number])
        negative = _thinned(negative, batch_N, max_controls, rng)
        own = own[np.isin(batch_N[own], batch_N[negative])]
        own = _thinned(own, batch_N, max_replicates, rng)
        negative = negative[np.isin(batch_N[negative], batch_N[own])]
        if len(own) == 0:
            continue
        pool = np.concatenate([own, negative])
        tested = Pool(to_numpy(rows(x, pool)).astype(np.float64), batch_N[pool], len(own), distance)
        p = tested.p_values(first, last, [seed, number])
        found.append(
            {"perturbation": name, "n_replicates": len(own), "n_controls": len(negative)}
            | {measure: float(value[0]) for measure, value in tested.statistics()._asdict().items()}
            | {f"{measure}_p_value": value for measure, value in zip(MEASURES, p, strict=True)}
            | {"smallest_p_value": max(1 / tested.arrangements, 1 / (last + 1))}
        )
    return pd.DataFrame(found)


def _thinned(
    index: npt.NDArray[np.intp], batch_N: np.ndarray, most: int, rng: np.random.Generator
) -> npt.NDArray[np.intp]:
    """At most `most` of the rows, as equally from each batch as they allow, and at least one of each."""
    if len(index) <= most:
        return index
    shuffled = rng.permutation(index)
    turn = pd.Series(batch_N[shuffled]).groupby(batch_N[shuffled]).cumcount().to_numpy()
    kept = np.argsort(turn, kind="stable")[: max(most, len(np.unique(batch_N[index])))]
    return np.sort(shuffled[kept])


def _by_well(
    x: Array,
    by_N: np.ndarray,
    is_control: np.ndarray,
    batch_N: np.ndarray,
    meta: pd.DataFrame,
    unit: ReplicateUnit,
) -> tuple[Array, npt.NDArray[np.str_], npt.NDArray[np.bool_], npt.NDArray[np.intp]]:
    check_metadata(meta, len(by_N))
    values = dict(zip(_COLUMNS, (by_N, is_control, batch_N), strict=True))
    table = meta.reset_index(drop=True).assign(**values)
    x, table, _ = independent_rows(x, table, list(_COLUMNS), unit, np.ones(len(by_N), dtype=bool))
    name, flag, number = _COLUMNS
    return x, table[name].to_numpy(str), table[flag].to_numpy(bool), table[number].to_numpy(np.intp)


def _with_decisions(table: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """The table with the q values of each measure beside its p values, and active_by."""
    active = np.zeros((len(table), len(MEASURES)), dtype=bool)
    for column, measure in enumerate(MEASURES):
        p = table[f"{measure}_p_value"].to_numpy()
        tested = np.isfinite(p)
        q = np.full(len(p), np.nan)
        q[tested] = q_values(p[tested])
        table.insert(table.columns.get_loc(f"{measure}_p_value") + 1, f"{measure}_q_value", q)
        active[:, column] = np.where(tested, q < threshold, False)
    return table.assign(active_by=[_named(flags) for flags in active])


def _named(flags: np.ndarray) -> str:
    names = [SHORT[measure] for measure, flag in zip(MEASURES, flags, strict=True) if flag]
    if len(names) in (0, len(MEASURES)):
        return "all" if names else "none"
    return f"{names[0]} only" if len(names) == 1 else " and ".join(names)


def activity_agreement(table: pd.DataFrame, examples: int = 3) -> pd.DataFrame:
    """Agreement of the three measures of activity: how many perturbations are active by all, none, or which.

    Parameters
    ----------
    table : DataFrame
        Result of `activity`.
    examples : int
        Perturbations named for each row.

    Returns
    -------
    DataFrame
        active_by, n, share and examples, in the order all, two measures, one, none; rows without one are there with 0.
    """
    check_result(table, ["perturbation", "active_by"], "maps.activity")
    check_number(examples, "examples", COUNT, whole=True)
    flags = [np.array([i >> k & 1 for k in (2, 1, 0)], dtype=bool) for i in range(8)]
    order = [_named(row) for row in sorted(flags, key=lambda row: -int(row.sum()))]
    found = []
    for name in order:
        own = table.perturbation[table.active_by == name]
        shown = listing(own, examples) if len(own) else ""
        found.append({"active_by": name, "n": len(own), "share": len(own) / len(table), "examples": shown})
    return pd.DataFrame(found)
