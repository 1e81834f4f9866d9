"""RefChemDB as a source of known pairs: compounds and genes of one target, changed in one direction.

RefChemDB (Judson et al. 2019, ALTEX, PMID 30570668) lists compounds with their targets, the direction in
which they change them, and how many sources support it. JUMP-lite deposits it matched with JUMP's perturbations and
with tiers of confidence (`jump_lite_refchem_annotations.parquet`, `refchemdb_conf_jump_matched.parquet`).
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from camae.errors import CamaeError
from camae.omissions import Omissions
from camae.text_table import column_names, read_arrow_table

TIERS = ("Tier0", "Tier1", "Tier2", "Tier3")
DEFAULT_TIER = "Tier2"
GENES, COMPOUNDS = "RefChemDB_genes", "RefChemDB_compounds"  # names of the sources
_COMPOUND, _REAGENT = "Metadata_JCP2022", "Metadata_JCP2022_target"
_COLUMNS = (_COMPOUND, _REAGENT, "target", "mode", "modality", "CrossModalityTier", "WithinModalityTier")
# A compound that lowers its target's activity acts as a knock-out of the gene does, one that raises it as an
# overexpression.
_SAME_DIRECTION = {"Negative": "crispr", "Positive": "orf"}


def is_refchemdb(path: str | Path) -> bool:
    """Whether a table is RefChemDB matched with JUMP, by its columns. Errors as `text_table.column_names`."""
    return set(_COLUMNS) <= set(column_names(path))


def check_tier(tier: str) -> None:
    """Raise CamaeError for a confidence that RefChemDB does not have."""
    if tier not in TIERS:
        raise CamaeError(f"refchemdb_tier {tier!r} is not one of {', '.join(TIERS)}")


def read_refchemdb(
    path: str | Path, tier: str = DEFAULT_TIER, omitted: Omissions | None = None
) -> dict[str, npt.NDArray[np.object_]]:
    """Read known pairs from RefChemDB matched with JUMP.

    Parameters
    ----------
    path : path
        Table with the columns Metadata_JCP2022 (a compound), target (a gene), mode (Negative, Positive, unspecified),
        Metadata_JCP2022_target and modality (a CRISPR or ORF reagent of that gene), CrossModalityTier and
        WithinModalityTier.
    tier : {"Tier0", "Tier1", "Tier2", "Tier3"}
        Lowest confidence that is taken; Tier0 is the highest.
    omitted : Omissions, optional
        Filled with the compounds' targets that were left out, and why.

    Returns
    -------
    dict of str to (n, 2) array of text
        Pairs of JCP2022 identifiers. "RefChemDB_genes": a compound and a reagent of its target that acts in the same
        direction, a knock-out (CRISPR) for a compound of mode Negative, an overexpression (ORF) for one of mode
        Positive, of a CrossModalityTier up to `tier`. "RefChemDB_compounds": two compounds that change one target in
        the same direction, both of a WithinModalityTier up to `tier`. A source without pairs is left out.

    Raises
    ------
    MissingFileError
        When there is no such file.
    CamaeError
        When a column is missing, the tier is unknown, or no pair is left.
    """
    check_tier(tier)
    missing = [name for name in _COLUMNS if name not in column_names(path)]
    if missing:
        raise CamaeError(f"{path}: has no column {missing[0]}, so it is not RefChemDB matched with JUMP")
    rows = read_arrow_table(path, _COLUMNS).to_pandas().fillna("").astype(str)
    taken = TIERS[: TIERS.index(tier) + 1]
    known = _directed(rows, omitted if omitted is not None else Omissions(), taken)
    across = known[
        known["CrossModalityTier"].isin(taken) & (known["mode"].map(_SAME_DIRECTION) == known["modality"])
    ]
    within = known[known["WithinModalityTier"].isin(taken)]
    pairs = {GENES: _reagents(across), COMPOUNDS: _same_target(within)}
    if not any(map(len, pairs.values())):
        raise CamaeError(
            f"{path}: no pair has a direction and a confidence of {tier} or better; choose a lower tier"
        )
    return {source: _array(listed) for source, listed in pairs.items() if listed}


def _directed(rows: pd.DataFrame, omitted: Omissions, taken: tuple[str, ...]) -> pd.DataFrame:
    """Rows of compounds whose direction at their target is known; the others are noted, as are those of low tiers."""
    directed = rows[rows["mode"].isin(list(_SAME_DIRECTION))]
    modes = directed.groupby([_COMPOUND, "target"], sort=False)["mode"].transform("nunique")
    _note(omitted, rows[~rows.index.isin(directed.index)], "RefChemDB names no direction")
    _note(omitted, directed[modes > 1], "RefChemDB names both directions")
    kept = directed[modes == 1]
    low = ~(kept["CrossModalityTier"].isin(taken) | kept["WithinModalityTier"].isin(taken))
    _note(omitted, kept[low], f"its confidence is below {taken[-1]}")
    return kept[~low]


def _note(omitted: Omissions, rows: pd.DataFrame, reason: str) -> None:
    for compound, target in rows[[_COMPOUND, "target"]].drop_duplicates().itertuples(index=False):
        omitted.add("pair", f"{compound} - {target}", reason)


def _reagents(rows: pd.DataFrame) -> list[tuple[str, str]]:
    found = rows[[_COMPOUND, _REAGENT]].drop_duplicates().itertuples(index=False)
    return sorted((str(compound), str(reagent)) for compound, reagent in found)


def _same_target(rows: pd.DataFrame) -> list[tuple[str, str]]:
    groups = rows.groupby(["target", "mode"], sort=False)[_COMPOUND].unique()
    return sorted({pair for compounds in groups for pair in combinations(sorted(compounds), 2)})


def _array(pairs: list[tuple[str, str]]) -> npt.NDArray[np.object_]:
    out = np.empty((len(pairs), 2), dtype=object)
    out[:] = pairs
    return out
