"""The bench's own rules: a red check refuses the row, baselines match exactly, slowdowns are named."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(scope="module")
def rows(bench_module):
    return bench_module("rows")


def line(**changes):
    seconds = {"median": 1.0, "p20": 0.9, "p80": 1.1, "rounds": 7}
    base = {"op": "x", "case": "y", "shape": [1], "dtype": "float32", "backend": "reference"}
    base |= {
        "device": "cpu-2core",
        "threads": 1,
        "versions": {"torch": "1"},
        "commit": "abc",
        "seconds": seconds,
    }
    return base | changes


def test_only_the_same_case_device_and_versions_is_a_baseline(rows, tmp_path):
    folder = tmp_path / "cpu-2core"
    folder.mkdir()
    old, new = line(commit="old"), line(commit="new")
    (folder / "kernels.jsonl").write_text(json.dumps(old) + "\n" + json.dumps(new) + "\n")
    assert rows.find_baseline(line(), tmp_path)["commit"] == "new"
    assert rows.find_baseline(line(versions={"torch": "2"}), tmp_path) is None
    assert rows.find_baseline(line(device="h100"), tmp_path) is None
    other = {"model": "another processor", "instructions": ["avx2"]}
    assert rows.find_baseline(line(cpu=other), tmp_path) is None


def test_rows_name_the_processor(rows):
    cpu = rows.machine("cpu")["cpu"]
    assert cpu["model"] != "unknown"
    assert set(cpu["instructions"]) <= {"avx2", "avx512", "avx512_bf16", "amx"}


def test_a_slowdown_beyond_the_spread_is_named(rows):
    # The limit is p80 + (p80 - p20) = 1.1 + 0.2.
    fast = line(seconds={"median": 1.29, "p20": 1, "p80": 2, "rounds": 7})
    slow = line(seconds={"median": 1.31, "p20": 1, "p80": 2, "rounds": 7})
    assert rows.slowdown(fast, line()) is None
    sentence = rows.slowdown(slow, line())
    assert "1.31 s, baseline 1 s (abc)" in sentence
    assert "x [y, reference] on cpu-2core" in sentence


def test_a_baseline_is_spread_over_several_timings(rows):
    runs = [{"a": rows.Times(m, m - 0.1, m + 0.1, 7)} for m in (2.0, 1.0, 1.5)]
    assert rows.spread_over(runs) == {"a": rows.Times(1.5, 0.9, 2.1, 21)}


@pytest.mark.parametrize(("later", "fails"), [(1.0, False), (1.5, True)])
def test_a_slow_row_is_measured_again(rows, monkeypatch, later, fails):
    """What was a neighbor's load passes on repetition; what stays slow fails with its figure."""
    monkeypatch.setattr(rows, "find_baseline", lambda row: line())
    monkeypatch.setattr(rows.time, "sleep", lambda seconds: None)
    recorder = rows.Recorder("cpu", full=False, compare=True, rounds=1)
    slow = line(seconds={"median": 1.5, "p20": 1, "p80": 2, "rounds": 7})
    again = rows.Times(later, later, later, 7)
    if fails:
        with pytest.raises(AssertionError, match=r"1\.5 s, baseline 1 s"):
            recorder.hold_to_baseline(slow, lambda: again)
    else:
        recorder.hold_to_baseline(slow, lambda: again)
    assert recorder.compared == 1


def test_a_wrong_result_writes_no_row(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "SCRATCH", tmp_path)
    monkeypatch.setattr(rows, "measured_limits", lambda device: (1e10, 1e11))
    recorder = rows.Recorder("cpu", full=False, compare=False, rounds=1)

    def check():
        raise AssertionError("wrong")

    arguments = {
        "shape": (1,),
        "dtype": "float32",
        "ours": {"reference": list},
        "competitors": {"other": list},
    }
    arguments |= {"size_bytes": 1, "flops": 1}
    with pytest.raises(AssertionError, match="wrong"):
        recorder.row("x", "y", check=check, **arguments)
    assert list(tmp_path.rglob("*.jsonl")) == []
    row = recorder.row("x", "y", check=lambda: None, **arguments)
    (file,) = tmp_path.rglob("*.jsonl")
    written = json.loads(file.read_text())
    assert written.pop("load_average") >= 0
    assert written == json.loads(json.dumps(row))
    assert row["correct"]
    assert row["competitor"] == "other"
