"""Text table reader: CSV, TSV, text and Parquet files, plain or gzipped, with every cell as text.

Nothing is guessed and nothing is repaired: a row of another length than the header, a repeated or missing column
name, two separators in one header are refused with the line they stand in.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import re
import zlib
from collections import Counter
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from camae.errors import CamaeError, MissingFileError

SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")
_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons"}
_USUAL = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_BOMS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


def read_text_table(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Table of text: no cell is guessed to be a number or a missing value.

    path: `.csv`, `.tsv`, `.txt`, each also as `.gz`, or `.parquet`; upper case as well. The separator is the one
        that stands in the header: comma, tab or semicolon.
    Returns one row per line, `str` cells, "" where empty.
    Raises MissingFileError when there is no such file, CamaeError with the line for anything but a table.
    """
    table = read_arrow_table(path)
    frame = pd.DataFrame({name: as_text(table.column(name).to_pandas()) for name in table.column_names})
    return frame.reindex(range(table.num_rows)) if frame.empty else frame


def read_arrow_table(path: str | os.PathLike[str]) -> pa.Table:
    """Table as stored: strings from a text file, the file's own types from Parquet. Errors as `read_text_table`."""
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file")
    try:
        if path.suffix.lower() == ".parquet":
            check_column_names(path, pa.parquet.read_schema(path).names)
            table = pa.parquet.read_table(path)
        else:
            table = _parse(path, _text_of(path, path.read_bytes()))
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CamaeError(f"{path}: cannot be read as a table ({reason})") from None
    # pandas writes the index of a table under this name; it is no column of the user's.
    return table.select([c for c in table.column_names if not c.startswith("__index_level_")])


def read_header(path: str | os.PathLike[str]) -> list[str]:
    """First row of a text file, as cells. Errors as `read_text_table`."""
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file")
    text = _text_of(path, path.read_bytes())
    return next(csv.reader([_first_line(text)], delimiter=separator_of(path, text)), [])


def check_column_names(path: Path, names: list[str]) -> None:
    """Raise CamaeError where a column has no name, a name stands twice, or blanks surround one."""
    for place, name in enumerate(names, start=1):
        if not name.strip():
            raise CamaeError(
                f"{path}, line 1: column {place} has no name; name it, or remove it (tables saved by pandas: "
                "index=False; by a spreadsheet: no separator at the end of the line)"
            )
        if name != name.strip():
            raise CamaeError(f"{path}, line 1: the column name {name!r} has blanks around it; remove them")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise CamaeError(
            f"{path}, line 1: the column name {repeated[0]!r} stands twice; rename or remove one"
        )


def as_text(column: pd.Series) -> pd.Series:
    """Text of a column (N,): missing cells become "", whole floats lose their ".0" (sites read as 1.0)."""
    if pd.api.types.is_float_dtype(column) and (column.dropna() % 1 == 0).all():
        column = column.astype("Int64")
    present = column.notna()
    return column.astype(object).where(present, "").map(str)


def separator_of(path: Path, text: str) -> str:
    """Separator of a text table: the one in its first line; the suffix's where a single column has none.

    Raises CamaeError where two of comma, tab and semicolon stand in the first line, outside quotes.
    """
    line = _first_line(text)
    counts = {s: len(next(csv.reader([line], delimiter=s), [])) - 1 for s in _SEPARATORS}
    found = [s for s, count in counts.items() if count > 0]
    if len(found) > 1:
        raise CamaeError(
            f"{path}, line 1: {' and '.join(_SEPARATORS[s] for s in found)} both separate column names; use one, "
            "and put names that hold the other in double quotes"
        )
    stem = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return found[0] if found else _USUAL.get(stem.suffix.lower(), ",")


def _first_line(text: str) -> str:
    return next((line for line in re.split(r"\r\n|\n|\r", text) if line.strip()), "")


def _text_of(path: Path, data: bytes) -> str:
    """Text of a file, unzipped, in UTF-8 (UTF-16 by its byte-order mark)."""
    if data.startswith(_GZIP):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise CamaeError(f"{path}: a damaged gzip file ({error})") from None
    if data.startswith(_PARQUET):
        raise CamaeError(f"{path}: holds Parquet, whatever its name says; rename it to .parquet")
    encoding = next((name for mark, name in _BOMS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise CamaeError(f"{path}, line {line}: not UTF-8 text; save the table as CSV in UTF-8") from None
    if "\x00" in text:
        line = text[: text.index("\x00")].count("\n") + 1
        raise CamaeError(f"{path}, line {line}: holds a zero byte, so it is no text table")
    return text


def _parse(path: Path, text: str) -> pa.Table:
    """Columns of strings. A row of another length than the header, or without any cell, is refused with its line."""
    if not text.strip():
        raise CamaeError(f"{path}: the file is empty; a table needs a line of column names")
    separator = separator_of(path, text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header: list[str] = []
    try:
        for row in reader:
            if row and not header:
                header = row
                check_column_names(path, header)
            elif row and len(row) != len(header):
                raise CamaeError(
                    f"{path}, line {reader.line_num}: {len(row)} cells where the header names {len(header)} columns "
                    f"({', '.join(header[:4])}{' ...' if len(header) > 4 else ''})"
                )
            elif row and not any(row):
                raise CamaeError(
                    f"{path}, line {reader.line_num}: holds separators and nothing else; delete it"
                )
    except csv.Error as error:
        raise CamaeError(f"{path}, line {reader.line_num}: not a row of a table ({error})") from None
    return _columns(text, header, separator)


def _columns(text: str, header: list[str], separator: str) -> pa.Table:
    return pa.csv.read_csv(
        io.BytesIO(text.encode()),
        read_options=pa.csv.ReadOptions(block_size=1 << 26),
        parse_options=pa.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(
            column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False
        ),
    )
