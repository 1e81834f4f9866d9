"""Text table reader: cells stay as written."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from camae.errors import CamaeError, MissingFileError
from camae.text_table import read_text_table

ROWS = [["NA", "007"], ["", "1.0"]]


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "tsv", "tsv.gz", "txt", "parquet"])
def test_cells_stay_as_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"table.{suffix}"
    table = pd.DataFrame(ROWS, columns=["gene", "site"])
    if suffix == "parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep="," if "csv" in suffix else "\t")
    read = read_text_table(path)
    assert list(read) == ["gene", "site"]
    assert read.to_numpy().tolist() == ROWS


def test_whole_numbers_of_parquet_lose_their_fraction(tmp_path: Path) -> None:
    pd.DataFrame({"site": [1.0, None], "x": [0.5, 2.0]}).to_parquet(tmp_path / "a.parquet")
    assert read_text_table(tmp_path / "a.parquet").to_numpy().tolist() == [["1", "0.5"], ["", "2.0"]]


def test_what_is_no_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such file"):
        read_text_table(tmp_path / "a.csv")
    for name in ("a.csv", "a.parquet"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(CamaeError, match="cannot be read as a table"):
            read_text_table(tmp_path / name)
