"""Locks of output folders."""

import subprocess
import sys
import threading

import pytest

from camae.errors import CamaeError, OutputError
from camae.locks import writing


def test_a_folder_that_nothing_was_written_into_is_taken_away(tmp_path):
    with writing(tmp_path / "a" / "out"):
        assert (tmp_path / "a" / "out" / ".lock").exists()
    assert not (tmp_path / "a" / "out").exists()
    (tmp_path / "mine").mkdir()
    with writing(tmp_path / "mine"):
        pass
    assert list((tmp_path / "mine").iterdir()) == []  # the user's own folder stays
    with writing(tmp_path / "kept"):
        (tmp_path / "kept" / "file").touch()
    assert (tmp_path / "kept" / "file").exists()


def test_many_threads_in_turn_never_two_at_once(tmp_path):
    """A lock file goes with its empty folder: who waits at the old one must not hold beside a new holder."""
    inside, most, refused = [], [], []

    def work():
        for _ in range(60):
            try:
                with writing(tmp_path / "out"):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except CamaeError:
                refused.append(1)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(most) + len(refused) == 360


def test_ranks_share_and_each_runs_once(tmp_path):
    with writing(tmp_path / "out", 0, 2), writing(tmp_path / "out", 1, 2):
        for rank, world in ((0, 2), (1, 2), (0, 1), (0, 3)):
            with (
                pytest.raises(CamaeError, match="is being written by process"),
                writing(tmp_path / "out", rank, world),
            ):
                pass
    assert not (tmp_path / "out" / ".lock").exists()


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    code = (
        "import os, pathlib, sys\nfrom camae.locks import writing\n"
        "with writing(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    assert done.returncode == -9
    with writing(tmp_path / "out"):
        pass


def test_fault_23_a_file_in_the_way(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "under"):
        with pytest.raises(OutputError, match=r"file .* in the way"), writing(path):
            pass
