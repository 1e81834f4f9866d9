"""Perturbation detection and sibling retrieval (paper, section 5.3, Table 4; CPJUMP1 benchmark).

Each profile (query) ranks its positives (replicates, siblings) among its negatives (controls, other targets) by
cosine. Its average precision is compared with random rankings of the same size; the p-values of all perturbations are
adjusted together by Benjamini-Hochberg.

With the K positives of a query at the places r_1 < ... < r_K of its ranking, average precision is
(1 / K) sum_k k / r_k: the precision at each positive, averaged. 1 means that all positives lead.

The null distribution of a profile with K positives among T ranked pairs is the average precision of `null_size` random
rankings with K and T; p = (#{null >= ap} + 1) / (null_size + 1).

Sources: Chandrasekaran et al. 2024 (CPJUMP1); Kalinin et al. 2025, "A versatile information retrieval framework for
evaluating profile strength and similarity" (copairs); McSherry and Najork 2008, "Computing information retrieval
performance measures efficiently in the presence of tied scores"; Benjamini and Hochberg 1995.
"""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
import pandas as pd

from camae.errors import CamaeError
from camae.maps.arrays import Array, Mask, namespace, takes_tensors, unit_rows
from camae.maps.inputs import embeddings, mask
from camae.maps.nulls import null_average_precision, p_values, q_values
from camae.maps.profile_pairs import Columns, Negatives, PairRules, columns, find_queries
from camae.maps.ranking import rank_queries
from camae.maps.replicates import ReplicateUnit, independent_rows

RULES = ("mean_log_p", "map_null")
TIES = ("expected", "copairs")


@takes_tensors
def retrieval(
    x: Array,
    meta: pd.DataFrame,
    pos_sameby: Columns,
    pos_diffby: Columns,
    neg_sameby: Columns,
    neg_diffby: Columns,
    null_size: int = 10_000,
    seed: int = 0,
    ties: str = "expected",
    *,
    sameby: Columns | None = None,
    rule: str = "mean_log_p",
    threshold: float = 0.05,
    query: Mask | None = None,
    absolute: bool = False,
    multilabel: str | None = None,
    separator: str = "|",
    unit: ReplicateUnit = None,
) -> pd.DataFrame:
    """Retrieval of perturbations: which groups of profiles are found among their negatives more often than by chance.

    `average_precision` of every profile, then `mean_average_precision` of every group. The fraction retrieved, the
    usual summary, is ``out.retrieved.mean()``.

    Parameters
    ----------
    x, meta, pos_sameby, pos_diffby, neg_sameby, neg_diffby
        Profiles, their metadata, and the rules of positive and negative pairs; see `average_precision`.
    ties, query, absolute, multilabel, separator, unit
        See `average_precision`.
    sameby : columns, optional
        Columns whose values make a group; `pos_sameby` by default.
    null_size, seed, rule, threshold
        See `mean_average_precision`.

    Returns
    -------
    DataFrame
        That of `mean_average_precision`.

    Raises
    ------
    CamaeError
        For unknown columns or options, no positives, or no negatives.

    References
    ----------
    Kraus et al. (CVPR 2024), section 5.3, Table 4; Chandrasekaran et al. 2024 (CPJUMP1); Kalinin et al. 2025
    (copairs).
    """
    if rule not in RULES:
        raise CamaeError(f"unknown rule '{rule}'; choose one of {', '.join(RULES)}")
    rules = PairRules.of(meta, pos_sameby, pos_diffby, neg_sameby, neg_diffby, multilabel, separator)
    ap = _average_precision(x, meta, rules, ties, query, absolute, unit)
    return mean_average_precision(ap, sameby or pos_sameby, null_size, threshold, seed, rule)


@takes_tensors
def average_precision(
    x: Array,
    meta: pd.DataFrame,
    pos_sameby: Columns,
    pos_diffby: Columns,
    neg_sameby: Columns,
    neg_diffby: Columns,
    *,
    ties: str = "expected",
    query: Mask | None = None,
    absolute: bool = False,
    multilabel: str | None = None,
    separator: str = "|",
    unit: ReplicateUnit = None,
) -> pd.DataFrame:
    """Average precision of every profile: how far ahead of its negatives its positives are ranked by cosine.

    A positive pair should look alike (replicates of a perturbation, compounds with one target), a negative pair should
    not (a perturbation and a control of its plate). Pairs that are neither are left out of the ranking.

    Parameters
    ----------
    x : (n, d) array
        Profiles, NumPy, CuPy or torch, floating point.
    meta : DataFrame
        n rows that describe them.
    pos_sameby, pos_diffby : column name or sequence of them
        A positive pair agrees in every `pos_sameby` column and differs in every `pos_diffby` column. A missing value
        does neither; an empty text does not agree with another.
    neg_sameby, neg_diffby : column name or sequence of them
        The same for negative pairs; one of the two must name a column.
    ties : {"expected", "copairs"}
        "expected" gives the mean over all orders of tied cosines, so that a constant embedding scores chance.
        "copairs" ranks tied positives first, as copairs does.
    query : n booleans, optional
        Profiles that are scored; all by default. Leave controls out: they only serve as negatives.
    absolute : bool
        Rank by the absolute cosine.
    multilabel, separator : str, optional
        Column of `pos_sameby` or `neg_diffby` that holds several labels joined by `separator` (targets of a
        compound). A profile then asks once for each of its labels; positives share this label, negatives share none.
    unit : {"well", "site"}, optional
        Rows of one well (Metadata_Plate, Metadata_Well) that would be a positive pair: "well" averages them, "site"
        counts them as replicates; by default they are refused, because sites of one well are no replicates.

    Returns
    -------
    DataFrame
        For each profile (and label) with a positive and a negative: meta's columns, with the index of meta, in
        order; n_pos_pairs, n_total_pairs and average_precision in (0, 1]. The `multilabel` column holds the one
        label asked for.

    Raises
    ------
    CamaeError
        For unknown columns or options, meta of another length, no positives, or no negatives.
    """
    rules = PairRules.of(meta, pos_sameby, pos_diffby, neg_sameby, neg_diffby, multilabel, separator)
    return _average_precision(x, meta, rules, ties, query, absolute, unit)


def _average_precision(
    x: Array,
    meta: pd.DataFrame,
    rules: PairRules,
    ties: str,
    query: Mask | None,
    absolute: bool,
    unit: ReplicateUnit,
) -> pd.DataFrame:
    if ties not in TIES:
        raise CamaeError(f"unknown ties '{ties}'; choose one of {', '.join(TIES)}")
    x = embeddings(x)
    n = x.shape[0]
    if len(meta) != n:
        raise CamaeError(f"the metadata has {len(meta)} rows and the embeddings {n}; they must correspond")
    asked = np.ones(n, dtype=bool) if query is None else mask(query, n, "query")
    if not set(rules.pos_diffby) & {"Metadata_Well", "Metadata_Plate"}:
        x, meta, asked = independent_rows(x, meta, rules.pos_sameby, unit, asked)
    queries = find_queries(meta, rules, asked)
    _warn_of_unscored(meta, rules.pos_sameby, asked, queries.profile)
    negatives = Negatives(namespace(x), meta, rules)
    ap, n_negatives = rank_queries(unit_rows(x), queries, negatives, ties, absolute)
    kept = n_negatives > 0
    if not kept.any():
        raise CamaeError("no profile has a negative pair; check neg_sameby and neg_diffby")
    out = meta.iloc[queries.profile[kept]].copy()
    if rules.multilabel in rules.pos_sameby:
        out[rules.multilabel] = queries.label[kept]
    n_pos = (queries.positive[kept] >= 0).sum(axis=1)
    return out.assign(n_pos_pairs=n_pos, n_total_pairs=n_pos + n_negatives[kept], average_precision=ap[kept])


def mean_average_precision(
    ap: pd.DataFrame,
    sameby: Columns,
    null_size: int = 10_000,
    threshold: float = 0.05,
    seed: int = 0,
    rule: str = "mean_log_p",
) -> pd.DataFrame:
    """Mean average precision of groups of profiles, with p-values by permutation and q-values.

    Parameters
    ----------
    ap : DataFrame
        Result of `average_precision`.
    sameby : column name or sequence of them
        Columns whose values make a group, usually the perturbation.
    null_size : int
        Random rankings in each null distribution.
    threshold : float
        False-discovery rate: groups with a q-value below it are retrieved.
    seed : int
        Of the null distributions.
    rule : {"mean_log_p", "map_null"}
        "mean_log_p" averages -log10 p over the profiles of a group (the published CPJUMP1 rule). "map_null" compares
        the group's mean average precision with the mean of its profiles' null distributions (copairs' rule).

    Returns
    -------
    DataFrame
        One row for each group: the `sameby` columns, n_profiles, average_precision (mean), p_value, q_value,
        retrieved.

    Raises
    ------
    CamaeError
        For an unknown column.

    Notes
    -----
    The null distribution and its p stand at the top of this module. q-values are Benjamini-Hochberg's over groups.
    """
    by = columns(ap, sameby, "sameby")
    out = _group_p_values(ap, by, null_size, seed, rule)
    out["q_value"] = q_values(out.p_value.to_numpy())
    return out.assign(retrieved=out.q_value < threshold)


def _group_p_values(ap: pd.DataFrame, by: list[str], null_size: int, seed: int, rule: str) -> pd.DataFrame:
    """Groups with n_profiles, mean average_precision and p_value by `rule`."""
    size = list(zip(ap.n_pos_pairs, ap.n_total_pairs, strict=True))
    nulls = {
        key: null_average_precision(int(key[0]), int(key[1]), null_size, seed) for key in sorted(set(size))
    }
    table = ap.assign(place=np.arange(len(ap)))
    if rule == "mean_log_p":
        score, p = table.average_precision.to_numpy(), np.empty(len(ap))
        for key, place in table.groupby(["n_pos_pairs", "n_total_pairs"]).place:
            p[place] = p_values(score[place], nulls[key])
        table["log_p"] = np.log10(p)
    grouped = table.groupby(by, sort=True, observed=True)
    summary = {"n_profiles": ("place", "size"), "average_precision": ("average_precision", "mean")}
    out = grouped.agg(**summary).reset_index()
    if rule == "mean_log_p":
        out["p_value"] = 10 ** grouped.log_p.mean().to_numpy()
    else:
        means = [np.mean([nulls[size[i]] for i in place], axis=0) for _, place in grouped.place]
        score = out.average_precision.to_numpy()
        out["p_value"] = [float(p_values(score[k], null)) for k, null in enumerate(means)]
    return out


def _warn_of_unscored(
    meta: pd.DataFrame, same: list[str], asked: npt.NDArray[np.bool_], scored: npt.NDArray[np.int64]
) -> None:
    left = asked.copy()
    left[scored] = False
    left &= (meta[same].notna() & (meta[same] != "")).all(axis=1).to_numpy()
    if left.any():
        row = int(left.argmax())
        warnings.warn(
            f"{left.sum()} of {asked.sum()} profiles have no positive pair, as a perturbation without replicates has "
            f"none, and are not scored (first: row {row}, {', '.join(map(str, meta[same].iloc[row]))})",
            stacklevel=5,  # past `takes_tensors`
        )
