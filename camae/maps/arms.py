"""Chromosome-arm bias of CRISPR knockouts: its measure, and its correction by genes that cells do not express.

Genes on one chromosome arm look alike whether or not they are related, because cutting can lose the arm (proximity
bias). Genes that are not expressed should do nothing, so their mean is the artifact of the arm.
Source: Lazar et al. 2024, "High-resolution genome-wide mapping of chromosome-arm-scale truncations induced by
CRISPR-Cas9 editing" (proxbias).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from camae.errors import CamaeError
from camae.files import path_of
from camae.maps.arrays import Array, Labels, namespace, rows, takes_tensors, to_numpy, unit_rows
from camae.maps.inputs import COUNT, check_number, embeddings, labels, listing
from camae.text_table import numbers, read_text_table
from camae.typed_settings import Limits

BINS = 1 << 15  # cosines are ranked on a grid of 2 / BINS; values in one bin are ties


@takes_tensors
def correct_arms(
    v: Array,
    genes: Labels,
    arms: Mapping[str, str],
    zfpkm: Mapping[str, float],
    unexpressed: float = -3.0,
    more_than: int = 20,
) -> Array:
    """Correct chromosome-arm bias: subtract from each gene the mean of its arm's unexpressed genes.

    Parameters
    ----------
    v : (n, d) array
        One row for each gene (or well of a gene), NumPy, CuPy or torch.
    genes : n labels
        Gene of each row.
    arms : mapping of str to str
        Gene to chromosome arm, such as "chr1p"; see `read_arms`.
    zfpkm : mapping of str to float
        Gene to expression in zFPKM units; see `read_expression`.
    unexpressed : float
        Genes under this zFPKM count as not expressed.
    more_than : int
        Arms with this many unexpressed genes or fewer stay as they are, as do genes without an arm.

    Returns
    -------
    (n, d) array
        In v's namespace and dtype.

    Raises
    ------
    CamaeError
        When the map has none of the tables' genes, an expression is no number, or no arm qualifies.

    References
    ----------
    Lazar et al. 2024 (proxbias); Kraus et al. (CVPR 2024), Table 3.
    """
    check_number(unexpressed, "unexpressed")
    check_number(more_than, "more_than", Limits(low=0), whole=True)
    v = embeddings(v, "v").copy()
    xp = namespace(v)
    gene_N = labels(genes, v.shape[0], "genes").tolist()
    gene_matches(gene_N, arms, "table of arms")
    gene_matches(gene_N, zfpkm, "table of expression")
    wrong = [gene for gene in gene_N if not isinstance(zfpkm.get(gene, 0), int | float | np.number)]
    if wrong:
        raise CamaeError(
            f"zfpkm of {wrong[0]} is {zfpkm[wrong[0]]!r}, which is no number ({len(wrong)} such rows of the map in all)"
        )
    arm_N = np.array([arms.get(gene, "") for gene in gene_N])
    silent_N = np.array([zfpkm.get(gene, math.inf) < unexpressed for gene in gene_N])
    corrected = 0
    for arm in np.unique(arm_N[arm_N != ""]):
        member = arm_N == arm
        if (member & silent_N).sum() > more_than:
            mean = rows(v, np.flatnonzero(member & silent_N)).mean(axis=0, dtype=np.float64).astype(v.dtype)
            v[xp.asarray(np.flatnonzero(member))] -= mean
            corrected += 1
    if corrected == 0:
        raise CamaeError(
            f"no chromosome arm has more than {more_than} unexpressed genes in the map; check the gene names, or "
            "lower more_than"
        )
    return v


@takes_tensors
def arm_bias(v: Array, genes: Labels, arms: Mapping[str, str], block: int = 1024) -> pd.DataFrame:
    """Chromosome-arm bias: are genes of one arm more alike than genes of different arms?

    Parameters
    ----------
    v : (n, d) array
        One row for each gene, origin at the negative controls, NumPy, CuPy or torch.
    genes : n labels
        Gene of each row; genes without an arm are left out.
    arms : mapping of str to str
        Gene to chromosome arm, such as "chr1p"; see `read_arms`.
    block : int
        Rows at a time; memory is block x n cosines.

    Returns
    -------
    DataFrame
        One row for all arms together ("all", first) and one for each arm with two genes: arm, n_genes, probability,
        statistic, p_value. probability is P(cosine within the arm > cosine across its border) + P(equal) / 2: 0.5
        without bias. statistic is Brunner-Munzel's, p_value is two-sided.

    Raises
    ------
    CamaeError
        When the map has no two arms with genes, or a block has no rows.

    Notes
    -----
    The p-value uses the normal approximation, as the pairs are many. Cosines are ranked on a grid of 2^15 bins.

    References
    ----------
    Brunner and Munzel 2000, "The Nonparametric Behrens-Fisher Problem"; Lazar et al. 2024 (proxbias).
    """
    check_number(block, "block", COUNT, whole=True)
    v = embeddings(v, "v")
    arm_N = np.array([arms.get(gene, "") for gene in labels(genes, v.shape[0], "genes").tolist()])
    placed = np.flatnonzero(arm_N != "")
    names, sizes = np.unique(arm_N[placed], return_counts=True)
    if len(names) < 2 or sizes.max() < 2:
        raise CamaeError("the map has no two chromosome arms with genes; check the gene names")
    placed = placed[np.argsort(arm_N[placed], kind="stable")]
    unit = unit_rows(rows(v, placed))
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    inside, across = np.zeros((2, len(names), BINS), dtype=np.int64)
    for k, (start, stop) in enumerate(itertools.pairwise(bounds)):
        for first in range(start, stop, block):
            own = unit[first : min(first + block, stop)]
            inside[k] += _counts(own @ unit[start:stop].T)
            inside[k] -= _counts((own * own).sum(axis=1))
            for other in (slice(0, start), slice(stop, None)):
                across[k] += _counts(own @ unit[other].T)
    inside //= 2  # every pair was met from both sides
    table = [("all", len(placed), *_brunner_munzel(inside.sum(axis=0), across.sum(axis=0) // 2))]
    for k, name in enumerate(names.tolist()):
        if sizes[k] > 1:
            table.append((name, int(sizes[k]), *_brunner_munzel(inside[k], across[k])))
    return pd.DataFrame(table, columns=["arm", "n_genes", "probability", "statistic", "p_value"])


def _counts(cosines: Array) -> np.ndarray:
    xp = namespace(cosines)
    bins = xp.clip(xp.rint((cosines.reshape(-1) + 1) * (BINS / 2)), 0, BINS - 1).astype(np.int64)
    return to_numpy(xp.bincount(bins, minlength=BINS))


def _brunner_munzel(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """P(x > y) + P(x = y) / 2, the Brunner-Munzel statistic and p of two samples given as counts on one grid."""
    nx, ny = int(x.sum()), int(y.sum())
    # Midranks of a value within each sample, less 1/2.
    below_x, below_y = np.cumsum(x) - x / 2, np.cumsum(y) - y / 2
    mean_of_x, mean_of_y = (x * below_y).sum() / nx, (y * below_x).sum() / ny
    var_x = (x * (below_y - mean_of_x) ** 2).sum() / max(nx - 1, 1)
    var_y = (y * (below_x - mean_of_y) ** 2).sum() / max(ny - 1, 1)
    probability = mean_of_x / ny
    spread = math.sqrt(var_x / nx / ny**2 + var_y / ny / nx**2)
    statistic = (probability - 0.5) / spread if spread > 0 else 0.0
    return float(probability), float(statistic), math.erfc(abs(statistic) / math.sqrt(2))


def read_arms(path: str | Path) -> dict[str, str]:
    """Read chromosome arms of genes.

    Parameters
    ----------
    path : path
        Table of text or Parquet with the columns gene and chrom_arm_name.

    Returns
    -------
    dict of str to str
        Gene to arm.

    Raises
    ------
    MissingFileError
        When there is no such file.
    CamaeError
        When a column is missing, a row has no gene, or a gene has two values. Rows without a value are left out.
    """
    return {gene: arm for gene, arm in _by_gene(path, "chrom_arm_name").items() if arm}


def read_expression(path: str | Path) -> dict[str, float]:
    """Read gene expression.

    Parameters
    ----------
    path : path
        Table of text or Parquet with the columns gene and zfpkm.

    Returns
    -------
    dict of str to float
        Gene to expression in zFPKM units: under -3 counts as not expressed.

    Raises
    ------
    CamaeError
        As `read_arms`.
    """
    value = _by_gene(path, "zfpkm")
    column = pa.table({"zfpkm": pa.array(list(value.values()), pa.string())})
    measured = numbers(path, column, "zfpkm").tolist()
    return {gene: zfpkm for gene, zfpkm in zip(value, measured, strict=True) if not math.isnan(zfpkm)}


def _by_gene(path: str | Path, name: str) -> dict[str, str]:
    """Column `name` of a table by gene, as text. A gene with two values, or a row without a gene, is refused."""
    table = read_text_table(path_of(path, "path"))
    for needed in ("gene", name):
        if needed not in table.columns:
            raise CamaeError(f"{path} lacks the column {needed}; it needs gene, {name}")
    table = table[["gene", name]].drop_duplicates()
    if (table.gene == "").any():
        raise CamaeError(
            f"{path}: a row has no gene (row {int((table.gene == '').argmax())}); complete or delete it"
        )
    twice = table.gene.duplicated(keep=False)
    if twice.any():
        gene = table.gene[twice].iloc[0]
        values = table[name][table.gene == gene].tolist()
        raise CamaeError(
            f"{path}: {gene} has two values of {name} ({values[0]} and {values[1]}); a gene has one"
        )
    return dict(zip(table.gene, table[name], strict=True))


def gene_matches(genes: Labels, table: Mapping[str, object], what: str) -> str:
    """Overlap of genes: how many of the map's the table has, and how many of the table's the map has.

    Raises CamaeError when there is none.
    """
    own = set(labels(genes, None, "genes").tolist())
    both = own & set(table)
    if not both:
        raise CamaeError(
            f"none of the map's {len(own):,} genes is among the {len(table):,} of the {what}; check the gene names "
            f"(map: {listing(sorted(own))}; table: {listing(table)})"
        )
    return f"{what}: {len(both):,} of the map's {len(own):,} genes are among the table's {len(table):,}"
