"""Known relationships from files: one file per source, named for it (CORUM.txt, StringDB.csv ..)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from camae.errors import CamaeError, MissingFileError

_SUFFIXES = (".txt", ".csv", ".tsv")


def read_pairs(path: str | Path) -> np.ndarray:
    """Known pairs, (n, 2) names as text, from a file's first two columns, under a header.

    .tsv is tab-separated, .csv and .txt comma-separated. Names such as NA stay text. Raises CamaeError for a file
    without two columns or rows, MissingFileError when there is none.
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


def read_pairs_folder(folder: str | Path) -> dict[str, np.ndarray]:
    """Known pairs by source: the folder's .txt, .csv and .tsv files, or the one file given.

    Files of another shape in the folder (a license, a cluster list) are passed over. The databases are not shipped:
    CORUM and SIGNOR are for non-commercial use; fetch them from their own sites or the EFAAR benchmarking package.
    Raises CamaeError when the folder holds no such file.
    """
    folder = Path(folder)
    if not folder.exists():
        raise MissingFileError(f"{folder} does not exist; give a file or folder of known pairs.")
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
            f"{folder} holds no file with two columns of names (.txt, .csv or .tsv, with a header)."
        )
    return out
