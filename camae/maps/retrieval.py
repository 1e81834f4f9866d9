"""Perturbation detection and sibling retrieval (paper, section 5.3, Table 4; CPJUMP1 benchmark).

Each profile (query) ranks its positives (replicates, siblings) among its negatives (controls, other targets) by
cosine (or correlation, or Euclidean distance). Its average precision is compared with random rankings of the same size
(`camae.maps.significance`); the p values of all perturbations are adjusted together by Benjamini-Hochberg.

With the K positives of a query at the places r_1 < ... < r_K of its ranking, average precision is
(1 / K) sum_k k / r_k: the precision at each positive, averaged. 1 means that all positives lead.

Normalized average precision is (AP - E) / (1 - E) with E the mean over random rankings with as many positives and
negatives (`camae.maps.nulls.expected_average_precision`): 0 is chance and 1 perfect whatever the numbers, so that
groups of different sizes compare. (Bestgen 2015; as in copairs.)

Sources: Chandrasekaran et al. 2024 (CPJUMP1); Kalinin et al. 2025, "A versatile information retrieval framework for
evaluating profile strength and similarity" (copairs); McSherry and Najork 2008, "Computing information retrieval
performance measures efficiently in the presence of tied scores"; Benjamini and Hochberg 1995.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from camae.errors import CamaeError
from camae.maps.arrays import Array, Mask, namespace, rows, takes_tensors
from camae.maps.distances import Distance, Similarities
from camae.maps.inputs import check_metadata, embeddings, mask
from camae.maps.nulls import Null, expected_average_precision
from camae.maps.profile_pairs import Columns, Negatives, PairRules, find_queries
from camae.maps.ranking import rank_queries
from camae.maps.replicates import ReplicateUnit, independent_rows
from camae.maps.significance import mean_average_precision

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
    sameby: Sequence[str] | str | None = None,
    rule: str = "mean_log_p",
    threshold: float = 0.05,
    query: Mask | None = None,
    absolute: bool = False,
    multilabel: str | None = None,
    separator: str = "|",
    unit: ReplicateUnit = None,
    distance: Distance = "cosine",
    null: Null = "auto",
) -> pd.DataFrame:
    """Retrieval of perturbations: which groups of profiles are found among their negatives more often than by chance.

    `average_precision` of every profile, then `mean_average_precision` of every group. The fraction retrieved, the
    usual summary, is ``out.retrieved.mean()``.

    Parameters
    ----------
    x, meta, pos_sameby, pos_diffby, neg_sameby, neg_diffby
        Profiles, their metadata, and the rules of positive and negative pairs; see `average_precision`.
    ties, query, absolute, multilabel, separator, unit, distance
        See `average_precision`.
    sameby : columns, optional
        Columns whose values make a group; `pos_sameby` by default.
    null_size, seed, rule, threshold, null
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
    rules = PairRules.of(meta, pos_sameby, pos_diffby, neg_sameby, neg_diffby, multilabel, separator)
    by = sameby or rules.pos_sameby
    if not by:
        raise CamaeError("pos_sameby has columns under 'any' alone; sameby must name those that make a group")
    ap = _average_precision(x, meta, rules, ties, query, absolute, unit, distance)
    return mean_average_precision(ap, by, null_size, threshold, seed, rule, null)


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
    distance: Distance = "cosine",
) -> pd.DataFrame:
    """Average precision of every profile: how far ahead of its negatives its positives are ranked.

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
        does neither; an empty text does not agree with another. ``{"all": [...], "any": [...]}`` asks for all of the
        first columns and one of the second. An expression among the columns, such as ``"Metadata_Dose == '10'"``
        (`pandas.DataFrame.query`), leaves the rows that it holds for, in all four rules, as in copairs.
    neg_sameby, neg_diffby : the same
        For negative pairs; one of the two must name a column. ``neg_sameby="Metadata_Plate"`` makes negatives local
        to the plate: plates that differ as a whole would otherwise look like an effect.
    ties : {"expected", "copairs"}
        "expected" gives the mean over all orders of tied cosines, so that a constant embedding scores chance.
        "copairs" ranks tied positives first, as copairs does.
    query : n booleans, optional
        Profiles that are scored; all by default. Leave controls out: they only serve as negatives.
    absolute : bool
        Rank by the absolute cosine (or correlation).
    multilabel, separator : str, optional
        Column of `pos_sameby` or `neg_diffby` that holds several labels joined by `separator` (targets of a
        compound). A profile then asks once for each of its labels; positives share this label, negatives share none.
    unit : {"well", "site"}, optional
        Rows of one well (Metadata_Plate, Metadata_Well) that would be a positive pair: "well" averages them, "site"
        counts them as replicates; by default they are refused, because sites of one well are no replicates.
    distance : {"cosine", "correlation", "euclidean"}
        What profiles are ranked by: cosine (for aligned profiles, with the origin at the controls), Pearson
        correlation over features, or Euclidean distance, which sees the size of an effect as well.

    Returns
    -------
    DataFrame
        For each profile (and label) with a positive and a negative: meta's columns, with the index of meta, in
        order; n_pos_pairs, n_total_pairs, average_precision in (0, 1] and normalized_average_precision (0 is chance,
        see the top of this module). The `multilabel` column holds the one label asked for.

    Raises
    ------
    CamaeError
        For unknown columns or options, meta of another length, no positives, or no negatives.
    """
    rules = PairRules.of(meta, pos_sameby, pos_diffby, neg_sameby, neg_diffby, multilabel, separator)
    return _average_precision(x, meta, rules, ties, query, absolute, unit, distance)


def _average_precision(
    x: Array,
    meta: pd.DataFrame,
    rules: PairRules,
    ties: str,
    query: Mask | None,
    absolute: bool,
    unit: ReplicateUnit,
    distance: Distance,
) -> pd.DataFrame:
    if ties not in TIES:
        raise CamaeError(f"unknown ties '{ties}'; choose one of {', '.join(TIES)}")
    x = embeddings(x)
    n = x.shape[0]
    check_metadata(meta, n)
    asked = np.ones(n, dtype=bool) if query is None else mask(query, n, "query")
    if rules.filters:
        kept_rows = rules.rows(meta)
        x, meta, asked = rows(x, kept_rows), meta.iloc[kept_rows], asked[kept_rows]
    if not set(rules.pos_diffby) & {"Metadata_Well", "Metadata_Plate"}:
        x, meta, asked = independent_rows(x, meta, rules.pos_sameby, unit, asked)
    queries = find_queries(meta, rules, asked)
    _warn_of_unscored(meta, rules.pos_sameby + rules.pos_same_any, asked, queries.profile)
    alike, negatives = Similarities(x, distance, absolute), Negatives(namespace(x), meta, rules)
    ap, n_negatives = rank_queries(alike, queries, negatives, ties)
    kept = n_negatives > 0
    if not kept.any():
        raise CamaeError("no profile has a negative pair; check neg_sameby and neg_diffby")
    out = meta.iloc[queries.profile[kept]].copy()
    if rules.multilabel in rules.pos_sameby:
        out[rules.multilabel] = queries.label[kept]
    n_pos = (queries.positive[kept] >= 0).sum(axis=1)
    total, score = n_pos + n_negatives[kept], ap[kept]
    chance = expected_average_precision(n_pos, total)
    return out.assign(
        n_pos_pairs=n_pos,
        n_total_pairs=total,
        average_precision=score,
        normalized_average_precision=(score - chance) / (1 - chance),
    )


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
