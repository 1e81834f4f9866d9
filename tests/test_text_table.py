"""The text table reader: text stays text, and whatever is no table is refused with its line."""

import gzip
import random
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from camae.errors import CamaeError, MissingFileError
from camae.text_table import numbers, read_arrow_table, read_text_table, write_csv


def written(tmp_path, text, name="t.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def test_text_stays_text(tmp_path):
    path = written(tmp_path, "gene,plate,id\nNA,0012,800000\nnan,7,\nNULL,None,1.0\n")
    assert read_text_table(path).to_dict("list") == {
        "gene": ["NA", "nan", "NULL"],
        "plate": ["0012", "7", "None"],
        "id": ["800000", "", "1.0"],
    }


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "a,b\n1,2\n"),
        ("t.CSV", "a,b\r\n1,2\r\n"),
        ("t.tsv", "a\tb\n1\t2\n"),
        ("t.txt", "a\tb\n1\t2\n"),
        ("t.txt", "a,b\n1,2\n"),
        ("t.csv", "a;b\n1;2\n"),
        ("t.csv", '"a","b"\n"1","2"\n'),
        ("t.csv", "\ufeffa,b\n1,2\n"),
        ("t.csv", "a,b\n1,2\n".encode("utf-16")),
        ("t.csv.gz", gzip.compress(b"a,b\n1,2\n", mtime=0)),
        ("t.tsv.gz", gzip.compress(b"a\tb\n1\t2\n", mtime=0)),
        ("t.csv", "\na,b\n\n1,2\n\n"),
    ],
)
def test_every_spelling_of_one_table(tmp_path, name, text):
    assert read_text_table(written(tmp_path, text, name)).to_dict("list") == {"a": ["1"], "b": ["2"]}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Metadata_Plate,DNA,ER\nP,dna.tif,er.tif,\n", r"line 2: 4 cells where the header names 3 columns"),
        ("a,b\n1,2\n\n3\n", r"line 4: 1 cells where the header names 2"),
        ("DNA,DNA\n1,2\n", r"line 1: the column name 'DNA' stands twice"),
        (",a\n0,1\n", r"line 1: column 1 has no name; name it, or remove it"),
        ("a,b,\n1,2,3\n", r"line 1: column 3 has no name"),
        ("a, b\n1,2\n", r"the column name ' b' has blanks around it"),
        ("a;b,c\n1;2,3\n", r"line 1: commas and semicolons both separate column names"),
        ("a\tb,c\n1\t2,3\n", r"commas and tabs both separate"),
        ("a,b\n,\n", r"line 2: holds separators and nothing else"),
        ('a,b\n1,"2\n', r"line 2: not a row of a table"),
        ("", r"the file is empty"),
        ("a,b\n1,\xb5\n".encode("latin1"), r"line 2: not UTF-8 text"),
        ("a,b\n1,\0\n", r"line 2: holds a zero byte"),
        (b"PAR1....PAR1", r"holds Parquet, whatever its name says"),
        (gzip.compress(b"a,b\n1,2\n", mtime=0)[:-9], r"a damaged gzip file"),
    ],
)
def test_what_is_no_table_is_refused_with_its_line(tmp_path, text, sentence):
    with pytest.raises(CamaeError, match=sentence):
        read_text_table(written(tmp_path, text))


def test_missing_file(tmp_path):
    with pytest.raises(MissingFileError, match="no such file"):
        read_text_table(tmp_path / "absent.csv")


def test_parquet_gives_the_same_text(tmp_path):
    table = pd.DataFrame(
        {
            "id": [800000.0, np.nan, 3.0],
            "share": [0.5, 1.0, 2.0],
            "gene": pd.Categorical(["NA", None, "x"]),
            "flag": [True, False, True],
        },
        index=[5, 6, 7],
    )
    table.to_parquet(tmp_path / "t.parquet")
    assert read_text_table(tmp_path / "t.parquet").to_dict("list") == {
        "id": ["800000", "", "3"],
        "share": ["0.5", "1.0", "2.0"],
        "gene": ["NA", "", "x"],
        "flag": ["True", "False", "True"],
    }


def test_repeated_columns_of_parquet_are_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table([pa.array(["1"]), pa.array(["2"])], names=["a", "a"]), tmp_path / "t.parquet")
    with pytest.raises(CamaeError, match="stands twice"):
        read_text_table(tmp_path / "t.parquet")


cells = st.text(
    st.characters(codec="utf-8", exclude_characters="\0\r\n\u00ad\u200b\u2060\ufeff"), min_size=0, max_size=6
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(cells, cells).filter(any), min_size=1, max_size=5))
def test_round_trip_of_any_text(tmp_path_factory, rows):
    """But for blanks around a cell, which nobody sees."""
    import csv

    path = tmp_path_factory.mktemp("t") / "t.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerows([("a", "b"), *rows])
    found = list(read_text_table(path).itertuples(index=False, name=None))
    assert found == [tuple(cell.strip() for cell in row) for row in rows]


def test_damaged_bytes_end_in_a_table_or_one_sentence(tmp_path):
    """1,000 random damages of a small table: nothing but CamaeError comes out."""
    rng = random.Random(0)
    good = b'Metadata_Plate,Metadata_Well,DNA\n"P1",A01,"a,b.tif"\nP1,A02,c.tif\n'
    for _ in range(1000):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(data))
            choice = rng.randrange(3)
            if choice == 0:
                data[place] = rng.randrange(256)
            elif choice == 1:
                del data[place]
            else:
                data[place:place] = bytes([rng.choice(b'",;\t\n\r\x00 \xff')])
        path = written(tmp_path, bytes(data))
        sentence = ""
        try:
            table = read_text_table(path)
        except CamaeError as error:
            sentence = str(error)
        if sentence:
            assert sentence.startswith(str(path))
        else:
            assert all(isinstance(cell, str) for cell in table.to_numpy().ravel())


def test_formulas_of_spreadsheets_are_noted_or_made_harmless(tmp_path):
    table = pd.DataFrame(
        {
            "gene": pd.Categorical(["=1+1", "+cmd", "-2.5", "@x", None, "-", "ABC"]),
            "cosine": [-0.5, 1, 2, 3, 4, 5, np.nan],
        }
    )
    with pytest.warns(
        UserWarning, match=r"4 cells begin like a spreadsheet formula \(first: =1\+1\); escape_formulas"
    ):
        write_csv(tmp_path / "t.csv", table)
    assert (tmp_path / "t.csv").read_text() == table.to_csv(index=False)
    write_csv(tmp_path / "t.csv", table, escape_formulas=True)
    found = read_text_table(tmp_path / "t.csv")
    assert found["gene"].tolist() == ["'=1+1", "'+cmd", "-2.5", "'@x", "", "'-", "ABC"]
    assert found["cosine"].tolist() == ["-0.5", "1.0", "2.0", "3.0", "4.0", "5.0", ""]


def test_numbers_are_read_strictly(tmp_path):
    path = written(tmp_path, "a,b\n1, 2.5\n-1e5,\n.5,NaN\n+3,inf\n")
    table = read_arrow_table(path)
    np.testing.assert_array_equal(numbers(path, table, "a"), [1, -1e5, 0.5, 3])
    np.testing.assert_array_equal(numbers(path, table, "b"), [2.5, np.nan, np.nan, np.inf])
    for wrong in ("NA", "1,5", "0x10", "1_000", "one", "1 2", "--1", "1e", "TRUE", "\u0661"):
        path = written(tmp_path, f'a\n1\n\n"{wrong}"\n')
        with pytest.raises(CamaeError, match=r"t.csv, line 4, column 'a': .* is not a number"):
            numbers(path, read_arrow_table(path), "a")


def test_a_large_table_of_numbers_is_read_as_fast_as_by_pandas(tmp_path):
    """At most 4 times the time of pandas (3 on a quiet machine): best of 3, interleaved."""
    path = tmp_path / "t.csv"
    x = np.random.default_rng(0).normal(size=(4000, 500))
    pd.DataFrame(x, columns=[f"f{k}" for k in range(500)]).to_csv(path, index=False)

    def ours():
        table = read_arrow_table(path)
        return np.stack([numbers(path, table, name) for name in table.column_names], axis=1)

    np.testing.assert_array_equal(ours(), x)
    seconds = {"pandas": [], "ours": []}
    for _ in range(3):
        for name, read in (("pandas", lambda: pd.read_csv(path)), ("ours", ours)):
            start = time.process_time()
            read()
            seconds[name].append(time.process_time() - start)
    assert min(seconds["ours"]) < 4 * min(seconds["pandas"])
