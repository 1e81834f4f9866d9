"""Text table reader: CSV, TSV and Parquet files with every cell as text."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from camae.errors import CamaeError, MissingFileError


def read_text_table(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Table of text: no cell is guessed to be a number or a missing value.

    path: `.csv`, `.tsv` or `.txt` (tab-separated), each also as `.gz`, or `.parquet`.
    Returns one row per line, `str` cells, "" where empty.
    Raises MissingFileError when there is no such file, CamaeError when it is not a table.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file")
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
            for column in table.columns:
                table[column] = as_text(table[column])
            return table
        separator = "\t" if {".tsv", ".txt"} & set(path.suffixes) else ","
        return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CamaeError(f"{path}: cannot be read as a table ({reason})") from error


def as_text(column: pd.Series) -> pd.Series:
    """Text of a column (N,): missing cells become "", whole floats lose their ".0" (sites read as 1.0)."""
    if pd.api.types.is_float_dtype(column) and (column.dropna() % 1 == 0).all():
        column = column.astype("Int64")
    return column.astype(object).where(column.notna(), "").map(str)
