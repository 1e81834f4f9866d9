"""Chromosome-arm bias of CRISPR knockouts: measured, and corrected with genes the cells do not express.

Source: Lazar et al. (proxbias): genes on one arm look alike whether or not they are related, because cutting can
lose the arm. Genes that are not expressed should do nothing, so their mean is the arm's artifact.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from camae.errors import CamaeError, MissingFileError
from camae.maps.arrays import embeddings, labels, namespace, rows, to_numpy, unit_rows

BINS = 1 << 15  # cosines are ranked on a grid of 2 / BINS; values in one bin are ties


def correct_arms(
    v: Any,
    genes: Any,
    arms: Mapping[str, str],
    zfpkm: Mapping[str, float],
    unexpressed: float = -3.0,
    more_than: int = 20,
) -> Any:
    """v (n, d) minus, for each chromosome arm, the mean over its unexpressed genes (zFPKM < `unexpressed`).

    genes: n names; arms: gene -> arm ("chr1p"); zfpkm: gene -> expression. Arms with `more_than` such genes or
    fewer, and genes without an arm, stay as they are. Same namespace and dtype as v. Raises CamaeError when no arm
    qualifies.
    """
    v = embeddings(v, "v").copy()
    xp = namespace(v)
    gene_N = labels(genes, v.shape[0], "genes").tolist()
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
            f"No chromosome arm has more than {more_than} unexpressed genes in the map; check the gene names, or "
            "lower more_than."
        )
    return v


def arm_bias(v: Any, genes: Any, arms: Mapping[str, str], block: int = 1024) -> pd.DataFrame:
    """How much closer genes of one arm are than genes of different arms: Brunner-Munzel, per arm and overall.

    Columns arm ("all" first), n_genes, probability (that a pair within the arm has a larger cosine than a pair
    across its border, ties half: 0.5 without bias), statistic, p_value (two-sided, normal approximation: the
    pairs are many). Genes without an arm are left out.
    """
    v = embeddings(v, "v")
    arm_N = np.array([arms.get(gene, "") for gene in labels(genes, v.shape[0], "genes").tolist()])
    placed = np.flatnonzero(arm_N != "")
    names, sizes = np.unique(arm_N[placed], return_counts=True)
    if len(names) < 2 or sizes.max() < 2:
        raise CamaeError("The map has no two chromosome arms with genes; check the gene names.")
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


def _counts(cosines: Any) -> np.ndarray:
    xp = namespace(cosines)
    bins = xp.clip(xp.rint((cosines.reshape(-1) + 1) * (BINS / 2)), 0, BINS - 1).astype(np.int64)
    return to_numpy(xp.bincount(bins, minlength=BINS))


def _brunner_munzel(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """P(x > y) + P(x = y) / 2, the Brunner-Munzel statistic and p of two samples given as counts on one grid."""
    nx, ny = int(x.sum()), int(y.sum())
    below_x, below_y = (
        np.cumsum(x) - x / 2,
        np.cumsum(y) - y / 2,
    )  # midranks of a value within each sample, less 1/2
    mean_of_x, mean_of_y = (x * below_y).sum() / nx, (y * below_x).sum() / ny
    var_x = (x * (below_y - mean_of_x) ** 2).sum() / max(nx - 1, 1)
    var_y = (y * (below_x - mean_of_y) ** 2).sum() / max(ny - 1, 1)
    probability = mean_of_x / ny
    spread = math.sqrt(var_x / nx / ny**2 + var_y / ny / nx**2)
    statistic = (probability - 0.5) / spread if spread > 0 else 0.0
    return float(probability), float(statistic), math.erfc(abs(statistic) / math.sqrt(2))


def read_arms(path: str | Path) -> dict[str, str]:
    """gene -> arm from a table with the columns gene and chrom_arm_name (CSV, also gzipped)."""
    table = _read(path, ["gene", "chrom_arm_name"])
    return dict(zip(table.gene.astype(str), table.chrom_arm_name.astype(str), strict=True))


def read_expression(path: str | Path) -> dict[str, float]:
    """gene -> zFPKM from a table with the columns gene and zfpkm (CSV, also gzipped)."""
    table = _read(path, ["gene", "zfpkm"])
    return dict(zip(table.gene.astype(str), table.zfpkm.astype(float), strict=True))


def _read(path: str | Path, needed: list[str]) -> pd.DataFrame:
    if not Path(path).is_file():
        raise MissingFileError(f"{path} does not exist; give a CSV with the columns {', '.join(needed)}.")
    table = pd.read_csv(path)
    missing = [name for name in needed if name not in table.columns]
    if missing:
        raise CamaeError(f"{path} lacks the column {missing[0]}; it needs {', '.join(needed)}.")
    return table.dropna(subset=needed)
