"""Atomic files and errors of outputs."""

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from camae.embedding_table import is_own_file, read_table, write_table
from camae.errors import CamaeError, OutputError
from camae.files import (
    check_outputs,
    open_lines,
    output_errors,
    read_json_lines,
    remove_leftovers,
    remove_unfinished,
    write_atomic,
    write_text,
)
from camae.text_table import column_names, read_text_table


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_fault_28_files_have_the_permissions_that_the_umask_says(tmp_path, mask):
    before = os.umask(mask)
    try:

        def private(path):
            path.write_text("x")
            path.chmod(0o600)

        for write in (private, lambda path: path.write_text("x")):
            path = write_atomic(tmp_path / "a.txt", write)
            assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "no permission"),
        (errno.ENOTDIR, "a file is in the way"),
        (errno.EISDIR, "a folder is in the way"),
        (errno.EBADF, "the system says: Bad file descriptor"),
    ],
)
def test_fault_23_errors_of_the_system_are_one_sentence(number, words):
    with (
        pytest.raises(OutputError, match=f"^out/x cannot be written: .*{words}") as caught,
        output_errors("out/x"),
    ):
        raise OSError(number, os.strerror(number), "elsewhere")
    assert caught.value.errno == number
    assert isinstance(caught.value, CamaeError)
    assert isinstance(caught.value, OSError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.errno) == (str(caught.value), number)


def test_fault_23_errors_of_rust_libraries_too():
    with pytest.raises(OutputError, match="the disk is full"), output_errors("x"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    with pytest.raises(RuntimeError, match="other"), output_errors("x"):
        raise RuntimeError("other")


def test_fault_23_a_full_disk_leaves_what_was_there(tmp_path):
    path = write_text(tmp_path / "a.txt", "before")

    def full(temporary):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match=r"a.txt cannot be written: the disk is full; free space"):
        write_atomic(path, full)
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_leftovers_of_killed_writes_are_removed(tmp_path):
    for name in (".model.123.safetensors", ".run.7.json", ".lock", ".hidden", "log.jsonl", ".lock.rank0of2"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".hidden", ".lock", ".lock.rank0of2", "log.jsonl"]


def test_unfinished_files_of_dead_writers_are_removed_and_no_others(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    alive = os.getppid()
    mine = [f".{alive}.csv", f".table2.{alive}.csv", ".notes.txt", f".notes.{dead.pid}.txt", "table2.csv"]
    for name in (*mine, f".table2.{dead.pid}.csv", f".map.{dead.pid}.parquet", f".table2.{os.getpid()}.csv"):
        (tmp_path / name).touch()
    write_text(tmp_path / "table2.csv", "")  # an output removes those of its own name
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*mine, f".map.{dead.pid}.parquet"])
    remove_unfinished(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(mine)
    remove_unfinished(tmp_path / "absent")


def test_a_line_cut_short_is_not_continued(tmp_path):
    """A journal whose writer was killed in a line: the next row is a line of its own."""
    path = tmp_path / "rows.jsonl"
    for cut in ("", '{"a": 1}\n{"a": 2, "b', '{"a": 1'):
        path.write_text(cut)
        with open_lines(path) as file:
            file.write('{"a": 3}\n')
        whole = [{"a": 1}] if "\n" in cut else []
        assert read_json_lines(path) == [*whole, {"a": 3}]


@pytest.mark.parametrize("folder", ["run:1", "file:1", "local:1", "s3:1"])
def test_a_relative_path_with_a_colon_is_no_address(tmp_path, monkeypatch, folder):
    """Arrow takes it for a URI: refuses it, or reads the file of another folder, as 1/t.parquet here."""
    monkeypatch.chdir(tmp_path)
    path = Path(folder, "t.parquet")
    write_table(path, pd.DataFrame({"a": ["1"]}), {"x": 1})
    write_table(Path("1", "t.parquet"), pd.DataFrame({"b": ["2"]}), {})
    assert read_table(path)[0].to_dict("list") == {"a": ["1"]}
    assert read_text_table(path).to_dict("list") == {"a": ["1"]}
    assert column_names(path) == ["a"]
    assert is_own_file(path)


def test_an_output_is_no_input_and_no_other_format(tmp_path):
    table, link = tmp_path / "wells.csv", tmp_path / "link.csv"
    table.write_text("a\n1\n")
    link.symlink_to(table)
    for path in (table, link, tmp_path / "." / "wells.csv"):
        with pytest.raises(CamaeError, match="is read here, and writing would replace it; name another file"):
            check_outputs([path], ".csv", [tmp_path / "absent.csv", table])
    with pytest.raises(CamaeError, match=r"wells.parquet: this is written as .csv; end its name so"):
        check_outputs([tmp_path / "wells.parquet"], ".csv")
    with pytest.raises(CamaeError, match=r"new.csv is named for two outputs"):
        check_outputs([tmp_path / "new.csv", tmp_path / "new.csv"], ".csv", [table])
    check_outputs([tmp_path / "new.csv", tmp_path / "page"], ".csv", [table])
    assert table.read_text() == "a\n1\n"
