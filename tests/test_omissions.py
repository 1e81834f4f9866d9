"""What was left out is counted by kind and reason, and listed in the output folder."""

import csv

from camae.omissions import Omissions


def test_lines_count_by_kind_and_reason_and_name_the_first():
    left_out = Omissions()
    for name in ("a.tif", "b.tif"):
        left_out.add("file", name, "no naming scheme fits")
    left_out.add("site", "P1 A01 s1", "lacks channel ER")
    assert left_out.lines() == [
        "2 files left out: no naming scheme fits (first: a.tif)",
        "1 site left out: lacks channel ER (first: P1 A01 s1)",
    ]


def test_the_list_is_written_and_an_old_one_goes(tmp_path):
    left_out = Omissions()
    left_out.add("gene", 'odd "name", with comma', "not in the map")
    path = left_out.write(tmp_path)
    with open(path, newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"kind": "gene", "item": 'odd "name", with comma', "reason": "not in the map"}
        ]
    assert Omissions().write(tmp_path) is None
    assert not path.exists()
