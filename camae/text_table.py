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
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from camae.errors import CamaeError, MissingFileError
from camae.files import local_path, write_text

SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")
MOST_COLUMNS = 20_000  # profiles have thousands of features
_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons"}
_USUAL = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # first characters of a cell that spreadsheets run as a formula
_GZIP = b"\x1f\x8b"
# Files of other kinds, by their first bytes.
_OTHERS = {
    b"PAR1": "holds Parquet, whatever its name says; rename it to .parquet",
    b"PK\x03\x04": "is an Excel workbook or a zip archive; save the table in it as CSV",
    b"\xd0\xcf\x11\xe0": "is an Excel workbook of an old kind; save it as CSV",
    b"\x89HDF": "is an HDF5 file; save it as .h5ad (profiles), CSV or Parquet",
    b"BZh": "is packed by bzip2; unpack it, or pack it by gzip",
    b"\xfd7zXZ": "is packed by xz; unpack it, or pack it by gzip",
    b"\x28\xb5\x2f\xfd": "is packed by zstd; unpack it, or pack it by gzip",
}
# Characters that no screen shows, and that make one name two.
_INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff]")
_NUMBER = r"^\s*[+-]?(\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?|[nN][aA][nN]|[iI][nN][fF])\s*$"
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
    for column in table.schema:
        if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
            raise CamaeError(f"{path}: the column {column.name!r} holds {column.type} where text is needed")
    frame = pd.DataFrame({name: as_text(table.column(name).to_pandas()) for name in table.column_names})
    return frame.reindex(range(table.num_rows)) if frame.empty else frame


def read_arrow_table(path: str | os.PathLike[str], columns: Sequence[str] | None = None) -> pa.Table:
    """Table as stored: strings from a text file, the file's own types from Parquet. Errors as `read_text_table`.

    columns: those to read, all for None.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file")
    try:
        if path.suffix.lower() == ".parquet":
            names = pa.parquet.read_schema(local_path(path)).names
            check_column_names(path, [n for n in names if columns is None or n in columns])
            table = pa.parquet.read_table(
                local_path(path), columns=None if columns is None else list(columns)
            )
            table.validate(full=True)  # also that its text is UTF-8
        else:
            table = _parse(path, _text_of(path, path.read_bytes()))
            table = table if columns is None else table.select(list(columns))
    except Exception as error:  # a damaged Parquet file raises anything
        raise _refusal(path, error) from None
    # pandas writes the index of a table under this name; it is no column of the user's.
    return table.select([c for c in table.column_names if not c.startswith("__index_level_")])


def column_names(path: str | os.PathLike[str]) -> list[str]:
    """Column names of a table, without its rows. Errors as `read_text_table`."""
    path = Path(path)
    if path.suffix.lower() != ".parquet":
        return read_header(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file")
    try:
        return list(pa.parquet.read_schema(local_path(path)).names)
    except Exception as error:  # a damaged Parquet file raises anything
        raise _refusal(path, error) from None


def _refusal(path: Path, error: Exception) -> CamaeError:
    if isinstance(error, CamaeError):
        return error
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return CamaeError(f"{path}: cannot be read as a table ({reason})")


def read_header(path: str | os.PathLike[str]) -> list[str]:
    """First row of a text file, as cells. Errors as `read_text_table`."""
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file")
    text = _text_of(path, path.read_bytes())
    try:
        return next(csv.reader([_first_line(text)], delimiter=separator_of(path, text)), [])
    except csv.Error as error:
        raise CamaeError(f"{path}, line 1: not a row of a table ({error})") from None


def read_rows(path: str | os.PathLike[str]) -> pa.Table:
    """Rows of a text file that may have no header: columns of strings, the first row among the others.

    All rows have the same number of cells. Errors as `read_text_table`.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file")
    text = _text_of(path, path.read_bytes())
    if not text.strip():
        raise CamaeError(f"{path}: the file is empty")
    separator = separator_of(path, text)
    first = next(row for _, row in _rows(path, text))
    if not _plainly_regular(text, separator, len(first)):
        _check_rows(path, text, first)
    return _columns(text, [f"f{k}" for k in range(len(first))], separator, header=False)


def numbers(path: str | os.PathLike[str], table: pa.Table, name: str) -> np.ndarray:
    """Numbers of a column of `read_arrow_table(path)`: text as fp64 (NaN where empty or "nan"), else as stored.

    Raises CamaeError with file, line and column for a cell that is not a number.
    """
    column = table.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if is_text(column.type):
        return _parsed_numbers(Path(path), column, name)
    if pa.types.is_null(column.type):
        return np.full(len(column), np.nan)
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        raise CamaeError(f"{path}: the column {name!r} holds {column.type} where numbers are needed")
    return column.to_numpy()


def are_numbers(column: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """Which cells of a column of text are numbers (an empty cell is none)."""
    return pa.compute.match_substring_regex(column, _NUMBER).fill_null(False).to_numpy()


def line_of(path: Path, row: int) -> int:
    """Line in which row `row` of a text table ends; the header is row -1."""
    lines = (line for line, _ in _rows(path, _text_of(path, path.read_bytes())))
    return next(line for k, line in enumerate(lines, start=-1) if k == row)


def write_csv(path: str | os.PathLike[str], table: pd.DataFrame, escape_formulas: bool = False) -> Path:
    """CSV file without an index, written whole or not at all.

    escape_formulas: put an apostrophe before text cells that begin with = + - @, tab or carriage return, which a
        spreadsheet would run as formulas; without it they are written as they are, with a warning.
    """
    columns: dict[object, pd.Series] = {}
    found: list[str] = []
    for name in table.columns:
        column = table[name]
        risky = _formulas(column)
        found += column[risky].astype(str).tolist()
        columns[name] = (
            column.astype(object).where(~risky, "'" + column.astype(str)) if escape_formulas else column
        )
    if found and not escape_formulas:
        warnings.warn(
            f"{path}: {len(found):,} cells begin like a spreadsheet formula (first: {found[0]}); "
            "escape_formulas=True makes them harmless",
            stacklevel=2,
        )
    written = pd.concat(columns, axis=1) if columns else table
    return write_text(Path(path), written.to_csv(index=False, lineterminator="\n"))


def _formulas(column: pd.Series) -> pd.Series:
    """Which cells are text that a spreadsheet runs as a formula; a number is none."""
    if pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        return pd.Series(False, index=column.index)
    text = column.astype(object).map(lambda cell: cell if isinstance(cell, str) else "")
    return text.str.startswith(FORMULA).astype(bool) & ~text.str.fullmatch(_NUMBER).astype(bool)


def check_column_names(path: Path, names: list[str]) -> None:
    """Raise CamaeError where a column has no name, a name stands twice, blanks surround one, or there are too many."""
    if len(names) > MOST_COLUMNS:
        raise CamaeError(f"{path}: has {len(names):,} columns, at most {MOST_COLUMNS:,} are read")
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
    """`text_as_given` of a column (N,), without blanks around it."""
    return text_as_given(column).str.strip()


def text_as_given(column: pd.Series) -> pd.Series:
    """Text of a column (N,): missing cells become "", whole floats lose their ".0" (sites read as 1.0)."""
    if pd.api.types.is_float_dtype(column):
        present = column.dropna()
        if (present % 1 == 0).all() and (present.abs() < 2**53).all():
            column = column.astype("Int64")
    present = column.notna()
    return column.astype(object).where(present, "").map(str)


def separator_of(path: Path, text: str) -> str:
    """Separator of a text table: the one in its first line; the suffix's where a single column has none.

    Raises CamaeError where two of comma, tab and semicolon stand in the first line, outside quotes.
    """
    line = _first_line(text)
    counts = {s: _cells(line, s) - 1 for s in _SEPARATORS}
    found = [s for s, count in counts.items() if count > 0]
    if len(found) > 1:
        raise CamaeError(
            f"{path}, line 1: {' and '.join(_SEPARATORS[s] for s in found)} both separate column names; use one, "
            "and put names that hold the other in double quotes"
        )
    stem = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return found[0] if found else _USUAL.get(stem.suffix.lower(), ",")


def _cells(line: str, separator: str) -> int:
    try:
        return len(next(csv.reader([line], delimiter=separator), []))
    except csv.Error:  # a line without the separator is one cell, which may be longer than csv takes
        return 0


def _first_line(text: str) -> str:
    return next((line for line in re.split(r"\r\n|\n|\r", text) if line.strip()), "")


def _text_of(path: Path, data: bytes) -> str:
    """Text of a file, unzipped, in UTF-8 (UTF-16 by its byte-order mark)."""
    if data.startswith(_GZIP):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise CamaeError(f"{path}: a damaged gzip file ({error})") from None
    if kind := next((said for start, said in _OTHERS.items() if data.startswith(start)), None):
        raise CamaeError(f"{path}: {kind}")
    encoding = next((name for mark, name in _BOMS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise CamaeError(f"{path}, line {line}: not UTF-8 text; save the table as CSV in UTF-8") from None
    if "\x00" in text:
        line = text[: text.index("\x00")].count("\n") + 1
        raise CamaeError(f"{path}, line {line}: holds a zero byte, so it is no text table")
    if not text.isascii() and (hidden := _INVISIBLE.search(text)):
        line = text[: hidden.start()].count("\n") + 1
        raise CamaeError(
            f"{path}, line {line}: holds the invisible character U+{ord(hidden[0]):04X}, which makes a name another; "
            "delete it"
        )
    return text


def _parse(path: Path, text: str) -> pa.Table:
    """Columns of strings. A row of another length than the header, or without any cell, is refused with its line."""
    if not text.strip():
        raise CamaeError(f"{path}: the file is empty; a table needs a line of column names")
    separator = separator_of(path, text)
    header = next(row for _, row in _rows(path, text))
    check_column_names(path, header)
    if not _plainly_regular(text, separator, len(header)):
        _check_rows(path, text, header)
    return _columns(text, header, separator)


def _plainly_regular(text: str, separator: str, width: int) -> bool:
    """Whether separators alone show that every row has `width` cells: a quick look at text without quotes."""
    if '"' in text:
        return False
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return all(not line or (line.count(separator) == width - 1 and line.strip(separator)) for line in lines)


def _check_rows(path: Path, text: str, header: list[str]) -> None:
    for line, row in _rows(path, text):
        if len(row) != len(header):
            raise CamaeError(
                f"{path}, line {line}: {len(row)} cells where the header names {len(header)} columns "
                f"({', '.join(header[:4])}{' ...' if len(header) > 4 else ''})"
            )


def _rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Lines and cells of the rows that are not blank. A row of separators alone, or a broken one, is refused."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator_of(path, text), strict=True)
    first = True
    try:
        for row in reader:
            if row and not first and not any(row):
                raise CamaeError(
                    f"{path}, line {reader.line_num}: holds separators and nothing else; delete it"
                )
            if row:
                first = False
                yield reader.line_num, row
    except csv.Error as error:
        raise CamaeError(f"{path}, line {reader.line_num}: not a row of a table ({error})") from None


def is_text(kind: pa.DataType) -> bool:
    """Test for text of any width: pandas 3 writes Parquet with large_string, earlier ones with string."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _parsed_numbers(path: Path, column: pa.ChunkedArray, name: str) -> npt.NDArray[np.float64]:
    try:
        return column.cast(pa.float64()).to_numpy()
    except pa.ArrowInvalid:
        trimmed = pa.compute.utf8_trim_whitespace(column)
    try:
        filled = pa.compute.if_else(pa.compute.equal(trimmed, ""), "nan", trimmed)
        return filled.cast(pa.float64()).to_numpy()
    except pa.ArrowInvalid:
        wrong = ~are_numbers(column) & (trimmed.fill_null("").to_numpy() != "")
    row = int(wrong.argmax())
    place = f"row {row}" if path.suffix.lower() == ".parquet" else f"line {line_of(path, row)}"
    raise CamaeError(
        f"{path}, {place}, column {name!r}: {column[row].as_py()!r} is not a number; leave a missing number empty, "
        "and name columns of text Metadata_..."
    )


def _columns(text: str, names: list[str], separator: str, header: bool = True) -> pa.Table:
    return pa.csv.read_csv(
        io.BytesIO(text.encode()),
        read_options=pa.csv.ReadOptions(block_size=1 << 26, autogenerate_column_names=not header),
        parse_options=pa.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        ),
    )
