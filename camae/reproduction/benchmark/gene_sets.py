"""Recall at 5 % false positives in sets of genes: the paper's Table 5."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from camae import maps
from camae.errors import CamaeError, MissingFileError
from camae.maps.arrays import Array
from camae.maps.pairs import Pairs
from camae.reproduction.benchmark.benchmark_tables import PairsBySource, ScreenProfiles
from camae.text_table import as_text, read_rows

FALSE_POSITIVES = 0.05
WHOLE_MAP = "all perturbations"


def gene_set_recall(
    screen: ScreenProfiles, pairs: PairsBySource, gene_sets: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Table 5 after the alignment chosen: source, gene_set, recall (NaN where there is none: a note says why)."""
    vectors, names = screen.to_map(screen.aligned(screen.chosen))
    table = []
    for source, listed in pairs.items():
        for name, genes in {WHOLE_MAP: None, **gene_sets}.items():
            found = recall_in_genes(vectors, names, listed, genes)
            if isinstance(found, str):
                screen.add_notes([f"{source}, {name}: {found}"])
            table.append((source, name, found if isinstance(found, float) else float("nan")))
    return pd.DataFrame(table, columns=["source", "gene_set", "recall"])


def recall_in_genes(
    vectors: Array, names: np.ndarray, pairs: Pairs, genes: Sequence[str] | None
) -> float | str:
    """Recall at 5 % false positives among `genes` (None: all), or the reason why there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return float(maps.recall_at_fpr(vectors, names, pairs, FALSE_POSITIVES, genes)["recall"])
    except CamaeError as error:
        return str(error)


def read_gene_sets(folder: str | Path | None) -> dict[str, list[str]]:
    """Gene sets by file name: .txt files with one gene in a line.

    Raises MissingFileError where there is no such folder, CamaeError for a folder without sets, two sets of one name,
    a line of several cells, and what `read_rows` refuses.
    """
    if folder is None:
        return {}
    if not Path(folder).is_dir():
        raise MissingFileError(f"{folder}: no such folder of gene sets")
    sets: dict[str, list[str]] = {}
    for file in sorted(f for f in Path(folder).iterdir() if f.name.lower().endswith((".txt", ".txt.gz"))):
        name = re.sub(r"\.txt(\.gz)?$", "", file.name, flags=re.IGNORECASE)
        if name in sets:
            raise CamaeError(f"{file}: another file of the folder holds the gene set {name}; keep one")
        rows = read_rows(file)
        if rows.num_columns > 1:
            raise CamaeError(f"{file}, line 1: holds {rows.num_columns} cells where a line has one gene")
        genes = (as_text(rows.column(0).to_pandas()).str.strip()).tolist()
        sets[name] = [gene for gene in genes if gene]
    if not sets:
        raise CamaeError(f"{folder}: holds no .txt file with the genes of a set, one in a line")
    return sets
