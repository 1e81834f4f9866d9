"""One spelling of every well of a plate, whatever the instrument wrote."""

import pytest

from camae.wells import COLUMNS, ROWS, normal_well, row_name, row_number


@pytest.mark.parametrize(
    "text", ["A1", "a1", "A01", "A001", "a-1", "A_01", " A 1 ", "r01c01", "R1C1", "r1 c01"]
)
def test_spellings_of_one_well(text):
    assert normal_well(text) == "A01"


def test_every_well_of_1536_is_kept_apart():
    names = [f"{row_name(r)}{c}" for r in range(1, ROWS + 1) for c in range(1, COLUMNS + 1)]
    normal = {normal_well(name) for name in names}
    assert len(normal) == 1536
    assert {"A01", "Z48", "AA01", "AF48"} <= normal
    assert {normal_well(f"r{r}c{c}") for r in range(1, 33) for c in range(1, 49)} == normal
    assert [row_number(row_name(r)) for r in range(1, ROWS + 1)] == list(range(1, ROWS + 1))


@pytest.mark.parametrize("text", ["", "DMSO", "A0", "A49", "AG1", "1", "B1536", "r33c1", "AB"])
def test_what_is_no_well_stays(text):
    assert normal_well(text) == text
