"""Known pairs of related perturbations: reading them from files, and matching them to the rows of a map.

One file holds one source, and is named for it (CORUM.txt, StringDB.csv).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from camae.errors import CamaeError, MissingFileError
from camae.maps.arrays import Labels
from camae.maps.inputs import labels, listing

Pairs: TypeAlias = Sequence[tuple[str, str]] | npt.NDArray | pd.DataFrame
PairSources: TypeAlias = Pairs | Mapping[str, Pairs]  # pairs of one source, or of several by name

_SUFFIXES = (".txt", ".csv", ".tsv")


def read_pairs(path: str | Path) -> npt.NDArray[np.object_]:
    """Read known pairs of related perturbations from a file.

    Parameters
    ----------
    path : path
        Table with a header; its first two columns are names. .tsv is tab-separated, .csv and .txt comma-separated.

    Returns
    -------
    (n, 2) array of text
        Pairs of names. Names such as NA stay text.

    Raises
    ------
    MissingFileError
        When there is no such file.
    CamaeError
        When the file has no two columns, or no rows.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file of known pairs")
    separator = "\t" if path.suffix == ".tsv" else ","
    try:
        table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise CamaeError(f"{path}: not a table of known pairs ({error})") from None
    if table.shape[1] < 2 or table.empty:
        raise CamaeError(
            f"{path}: needs two columns of names under a header, found {table.shape[1]} columns and "
            f"{len(table)} rows"
        )
    return table.iloc[:, :2].to_numpy(dtype=object)


def read_pairs_folder(folder: str | Path) -> dict[str, npt.NDArray[np.object_]]:
    """Read known pairs of several sources from a folder.

    Parameters
    ----------
    folder : path
        Its .txt, .csv and .tsv files are read with `read_pairs`; files of another shape (a license, a list of
        clusters) are passed over. One file is read as a folder of one.

    Returns
    -------
    dict of str to (n, 2) array of text
        Pairs by source, the file name without its ending.

    Raises
    ------
    MissingFileError
        When there is no such folder or file.
    CamaeError
        When the folder holds no file of pairs.

    Notes
    -----
    The databases are not shipped: CORUM and SIGNOR are for non-commercial use. Fetch them from their own sites or
    from the EFAAR benchmarking package.
    """
    folder = Path(folder)
    if not folder.exists():
        raise MissingFileError(f"{folder} does not exist; give a file or folder of known pairs")
    if folder.is_file():
        return {folder.stem: read_pairs(folder)}
    out = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix in _SUFFIXES):
        try:
            out[path.stem] = read_pairs(path)
        except CamaeError:
            continue
    if not out:
        raise CamaeError(
            f"{folder} holds no file with two columns of names (.txt, .csv or .tsv, with a header)"
        )
    return out


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
    name_N = labels(names, len(names), "names")
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
            f"(first: {first[0]} - {first[1]})",
            stacklevel=3,
        )
    ordered = np.sort(index[~unknown], axis=1)
    distinct = np.unique(ordered[ordered[:, 0] < ordered[:, 1]] @ [len(name_N), 1])  # a pair as one number
    if len(distinct) == 0:
        raise CamaeError(
            f"{source}: none of its {len(text)} pairs is in the map; check that the names are the same"
        )
    return KnownPairs(np.stack(np.divmod(distinct, len(name_N)), axis=1), int(unknown.sum()), len(text))


def match_sources(names: Labels, pairs: PairSources) -> dict[str, KnownPairs]:
    """`match_pairs` for each source; pairs without sources are the source "pairs"."""
    sources = pairs if isinstance(pairs, Mapping) else {"pairs": pairs}
    return {source: match_pairs(names, listed, source) for source, listed in sources.items()}


def pairs_as_text(pairs: Pairs, source: str) -> npt.NDArray[np.object_]:
    """Pairs as an object array (n, 2) of text, from 2-tuples, an array or a two-column DataFrame."""
    listed = pairs.to_numpy() if isinstance(pairs, pd.DataFrame) else pairs
    if len(listed) == 0:
        return np.empty((0, 2), dtype=object)
    try:
        raw = np.array(listed if isinstance(listed, np.ndarray) else list(listed), dtype=object)
    except ValueError:  # entries of several lengths
        raw = np.empty(0)
    if raw.ndim != 2 or raw.shape[1] != 2:
        raise CamaeError(f"{source} must be a sequence of 2-tuples of names; an entry has another length")
    if pd.api.types.infer_dtype(raw.ravel(), skipna=False) == "string":
        return raw
    return raw.astype(str).astype(object)
