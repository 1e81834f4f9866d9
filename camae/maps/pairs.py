"""Known pairs of related perturbations: reading them from files, and matching them to the rows of a map.

One file holds one source, and is named for it (CORUM.txt, StringDB.csv).
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute

from camae.errors import CamaeError, MissingFileError
from camae.files import path_of
from camae.maps.arrays import Labels
from camae.maps.inputs import labels, listing
from camae.maps.refchemdb import DEFAULT_TIER, check_tier, is_refchemdb, read_refchemdb
from camae.omissions import Omissions
from camae.text_table import SUFFIXES, line_of, read_rows, read_text_table

Pairs: TypeAlias = Sequence[tuple[str, str]] | np.ndarray | pd.DataFrame
PairSources: TypeAlias = Pairs | Mapping[str, Pairs]  # pairs of one source, or of several by name

_HEADER = re.compile(
    r"(entity|gene|protein|node|perturbation|compound|name|symbol|interactor|target|source|item|partner|id|from|to)"
    r"([ _.-]?(name|symbol|id))?([ _.-]?([12]|[ab]|[ij]|left|right))?",
    re.IGNORECASE,
)
_GENES = re.compile(r"id[12]", re.IGNORECASE)  # words of a header that are symbols of genes as well


def read_pairs(path: str | Path) -> npt.NDArray[np.object_]:
    """Read known pairs of related perturbations from a file.

    Parameters
    ----------
    path : path
        Table of text (.txt, .csv, .tsv, each also .gz, or .parquet); its first two columns are names. The first line
        is a header where it says what its columns hold (entity1, gene_a, ...) and neither word is a name in the
        lines below; otherwise it is the first pair, and a warning says so. ID1 and ID2, which are genes as well, are
        read as a header with a warning.

    Returns
    -------
    (n, 2) array of text
        Pairs of names. Names such as NA stay text.

    Raises
    ------
    MissingFileError
        When there is no such file.
    CamaeError
        When the file has no two columns, no rows, a name is missing, or it lists clusters instead of pairs.
    """
    path = path_of(path, "path")
    parquet = path.suffix.lower() == ".parquet"
    rows = read_text_table(path).astype(object) if parquet else _rows(path)
    has_header = not parquet and _is_header(rows)
    below = rows.iloc[int(has_header) :]
    if below.shape[1] < 2 or below.empty:
        raise CamaeError(
            f"{path}: needs two columns of names, found {below.shape[1]} columns and {len(below)} rows of names"
        )
    if _are_clusters(below):
        raise CamaeError(f"{path}: lists clusters (a name and its members) where pairs are needed")
    pairs = below.iloc[:, :2].to_numpy(dtype=object)
    empty = (pairs == "").any(axis=1)
    if empty.any():
        row = int(empty.argmax())
        place = f"row {row}" if parquet else f"line {line_of(path, row + has_header - 1)}"
        raise CamaeError(
            f"{path}, {place}: a name is missing ({int(empty.sum())} such rows in all); complete or delete it"
        )
    header = rows.iloc[0, :2].astype(str).tolist() if has_header else []
    if header and all(map(_GENES.fullmatch, header)):
        warnings.warn(
            f"{path}: its first line ({header[0]} - {header[1]}) is read as a header, though genes have these names; "
            "if it is a pair, write a header above it",
            stacklevel=2,
        )
    if not (has_header or parquet):
        warnings.warn(
            f"{path}: has no header; its first line is read as a pair ({pairs[0, 0]} - {pairs[0, 1]})",
            stacklevel=2,
        )
    return pairs


def _rows(path: Path) -> pd.DataFrame:
    """Rows of text without blanks around cells, the first among them."""
    table = read_rows(path)
    return pd.DataFrame(
        {k: pa.compute.utf8_trim_whitespace(column).to_numpy() for k, column in enumerate(table.columns)}
    )


def _is_header(rows: pd.DataFrame) -> bool:
    """Whether the first row names columns: by its words, or by text over a column of numbers."""
    if rows.shape[1] < 2:
        return False
    first, below = [str(cell) for cell in rows.iloc[0]], rows.iloc[1:]
    if below.iloc[:, :2].isin(first[:2]).any(axis=None):
        return False
    if len(below) and any(
        not _is_number(first[k]) and below[k].map(_is_number).all() for k in range(2, len(first))
    ):
        return True
    return all(_HEADER.fullmatch(cell) for cell in first[:2]) or first[:2] in (["a", "b"], ["x", "y"])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _are_clusters(rows: pd.DataFrame) -> bool:
    """Whether rows are a cluster's name and its members, with blanks between them: CORUM's list of complexes."""
    if rows.shape[1] != 2:
        return False
    several = rows.iloc[:, 1].str.contains(r"\S\s+\S")
    return several.sum() > 0.9 * len(rows) and rows.iloc[:, 1].str.split().str.len().max() > 2


def read_pairs_folder(
    folder: str | Path, omitted: Omissions | None = None, refchemdb_tier: str = DEFAULT_TIER
) -> dict[str, npt.NDArray[np.object_]]:
    """Read known pairs of several sources from a folder.

    Parameters
    ----------
    folder : path
        Its .txt, .csv and .tsv files (also .gz, in upper case, and .parquet) are read with `read_pairs`. A file that
        is no list of pairs (a license, a list of clusters, a damaged file) is left out. One file is read as a folder
        of one.
    omitted : Omissions, optional
        Filled with the files that were left out and why; without it a warning counts them.
    refchemdb_tier : {"Tier0", "Tier1", "Tier2", "Tier3"}
        Lowest confidence of RefChemDB's pairs, where a file is RefChemDB matched with JUMP (see `read_refchemdb`).

    Returns
    -------
    dict of str to (n, 2) array of text
        Pairs by source, the file name without its ending (with it where two files would have one name); of RefChemDB
        "RefChemDB_genes" and "RefChemDB_compounds".

    Raises
    ------
    MissingFileError
        When there is no such folder or file.
    CamaeError
        When the folder holds no file of pairs, or for an unknown tier.

    Notes
    -----
    The databases are not shipped: CORUM and SIGNOR are for non-commercial use. Fetch them from their own sites or
    from the EFAAR benchmarking package.
    """
    check_tier(refchemdb_tier)
    folder = path_of(folder, "folder")
    if not folder.exists():
        raise MissingFileError(f"{folder} does not exist; give a file or folder of known pairs")
    left_out = Omissions()
    if folder.is_file():
        if not is_refchemdb(folder):
            return {_source(folder): read_pairs(folder)}
        return _tell(folder, read_refchemdb(folder, refchemdb_tier, left_out), left_out, omitted)
    found: dict[Path, npt.NDArray[np.object_]] = {}
    matched: dict[str, npt.NDArray[np.object_]] = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")):
        if not path.name.lower().removesuffix(".gz").endswith(SUFFIXES):
            left_out.add("file", path.name, "no table (.txt, .csv, .tsv, .parquet)")
            continue
        try:
            if is_refchemdb(path):
                matched |= read_refchemdb(path, refchemdb_tier, left_out)
            else:
                found[path] = read_pairs(path)
        except CamaeError as error:
            left_out.add("file", path.name, str(error).removeprefix(str(path)).lstrip(":, "))
    if not (found or matched):
        raise CamaeError(
            f"{folder} holds no file with two columns of names ({', '.join(SUFFIXES)}, also .gz)"
        )
    names = Counter(_source(path) for path in found)
    pairs = {_source(p) if names[_source(p)] == 1 else p.name: listed for p, listed in found.items()}
    return _tell(folder, pairs | matched, left_out, omitted)


def _tell(
    folder: Path,
    pairs: dict[str, npt.NDArray[np.object_]],
    left_out: Omissions,
    omitted: Omissions | None,
) -> dict[str, npt.NDArray[np.object_]]:
    """The pairs, when what was left out has been noted, or warned of."""
    if omitted is not None:
        omitted.extend(left_out)
    else:
        for line in left_out.lines():
            warnings.warn(f"{folder}: {line}", stacklevel=3)
    return pairs


def _source(path: Path) -> str:
    """Name of a file without its ending, nor that of gzip."""
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).stem


@dataclass(frozen=True)
class KnownPairs:
    """Known pairs as rows of a map: index (pairs, 2), unordered and distinct; how many were listed and left out."""

    index: npt.NDArray[np.intp]
    unknown: int
    listed: int


def match_pairs(names: Labels, pairs: Pairs, source: str = "pairs") -> KnownPairs:
    """Match known pairs to the rows of a map; labels match exactly.

    Self pairs and repeats (also reversed) are dropped; pairs with a name that the map lacks are dropped, counted
    and shown in a warning. Raises CamaeError for duplicated names, malformed pairs, or when no pair is left.
    """
    name_N = labels(names, None, "names")
    lookup = pd.Index(name_N.astype(object))
    if not lookup.is_unique:
        raise CamaeError(
            f"names holds {listing(lookup[lookup.duplicated()].unique())} more than once; aggregate to one row per "
            "perturbation first"
        )
    text = pairs_as_text(pairs, source)
    index = np.stack([lookup.get_indexer(text[:, 0]), lookup.get_indexer(text[:, 1])], axis=1)
    unknown = (index < 0).any(axis=1)
    if unknown.any():
        first = text[unknown.argmax()]
        warnings.warn(
            f"{source}: {unknown.sum()} of {len(text)} pairs name a perturbation that the map lacks and are left out "
            f"(first: {first[0]} - {first[1]}){_spelled_otherwise(text[index < 0], name_N)}",
            stacklevel=4,
        )
    ordered = np.sort(index[~unknown], axis=1)
    distinct = np.unique(ordered[ordered[:, 0] < ordered[:, 1]] @ [len(name_N), 1])  # a pair as one number
    if len(distinct) == 0:
        raise CamaeError(
            f"{source}: none of its {len(text)} pairs is in the map; check that the names are the same"
            f"{_spelled_otherwise(text[index < 0], name_N)}"
        )
    return KnownPairs(np.stack(np.divmod(distinct, len(name_N)), axis=1), int(unknown.sum()), len(text))


def match_sources(names: Labels, pairs: PairSources) -> dict[str, KnownPairs]:
    """`match_pairs` for each source; pairs without sources are the source "pairs".

    A source none of whose pairs is in the map is left out with a warning while another one has some.
    """
    if not isinstance(pairs, Mapping):
        return {"pairs": match_pairs(names, pairs, "pairs")}
    found: dict[str, KnownPairs] = {}
    failed: dict[str, CamaeError] = {}
    for source, listed in pairs.items():
        try:
            found[source] = match_pairs(names, listed, source)
        except CamaeError as error:
            failed[source] = error
    if not found:
        raise next(iter(failed.values()), CamaeError("no known pairs are given"))
    for reason in failed.values():
        warnings.warn(f"left out: {reason}", stacklevel=4)
    return found


def _spelled_otherwise(unknown: npt.NDArray[np.object_], names: npt.NDArray[np.str_]) -> str:
    """What to add to a message where unknown names are names of the map but for case or blanks."""
    known = {name.strip().casefold(): name for name in names.tolist()}
    pairs = {
        name: known[name.strip().casefold()] for name in unknown.tolist() if name.strip().casefold() in known
    }
    if not pairs:
        return ""
    first = next(iter(pairs.items()))
    return (
        f"; {len(pairs)} of the unknown names differ from names of the map in upper and lower case alone "
        f"(first: {first[0]} for {first[1]}), and names must be the same"
    )


def pairs_as_text(pairs: Pairs, source: str) -> npt.NDArray[np.object_]:
    """Pairs as an object array (n, 2) of text, from 2-tuples, an array or a two-column DataFrame."""
    listed = pairs.to_numpy() if isinstance(pairs, pd.DataFrame) else pairs
    if not isinstance(listed, Iterable):
        raise CamaeError(f"{source} must be a sequence of 2-tuples of names, not a {type(listed).__name__}")
    if not isinstance(listed, np.ndarray):
        listed = list(listed)  # a generator has no length
    if len(listed) == 0:
        return np.empty((0, 2), dtype=object)
    try:
        raw = np.array(listed, dtype=object)
    except ValueError:  # entries of several lengths
        raw = np.empty(0)
    if raw.ndim != 2 or raw.shape[1] != 2:
        raise CamaeError(f"{source} must be a sequence of 2-tuples of names; an entry has another length")
    if pd.api.types.infer_dtype(raw.ravel(), skipna=False) == "string":
        return raw
    missing = np.asarray(pd.isna(raw)).any(axis=1)
    if missing.any():
        raise CamaeError(
            f"{source}: a name is missing in pair {int(missing.argmax())} ({int(missing.sum())} such pairs in all)"
        )
    return raw.astype(str).astype(object)
