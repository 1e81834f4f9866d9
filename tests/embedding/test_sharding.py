"""Ranks from the environment, and that one output has one writer."""

import os
import signal
import subprocess
import sys
import time

import pytest

from camae.embedding.ranks import rank_and_world
from camae.errors import CamaeError
from camae.locks import writing

ARRAY = {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "4", "SLURM_ARRAY_TASK_COUNT": "4"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, (3, 8)),
        (ARRAY | {"SLURM_ARRAY_TASK_ID": "2"}, (1, 4)),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, (1, 2)),
        # The shell of a batch script: one process, whatever the job's size.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "16"}, (0, 1)),
        # torchrun of 2 in each task of an array of 4.
        (ARRAY | {"SLURM_ARRAY_TASK_ID": "4", "RANK": "1", "WORLD_SIZE": "2"}, (7, 8)),
        (
            {"SLURM_ARRAY_TASK_ID": "6", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "9"}
            | {"SLURM_ARRAY_TASK_STEP": "3", "SLURM_ARRAY_TASK_COUNT": "4"},
            (2, 4),
        ),
    ],
)
def test_rank_from_the_environment(environment, expected):
    assert rank_and_world(environment=environment) == expected
    assert rank_and_world(1, 3, environment) == (1, 3)


def test_wrong_ranks_are_one_sentence():
    with pytest.raises(CamaeError, match="rank 4 is not one of 0 to 3"):
        rank_and_world(4, 4)
    with pytest.raises(CamaeError, match="belong together"):
        rank_and_world(rank=0)
    with pytest.raises(CamaeError, match="WORLD_SIZE is 'two', not a number"):
        rank_and_world(environment={"RANK": "0", "WORLD_SIZE": "two"})
    with pytest.raises(CamaeError, match="array has gaps"):
        rank_and_world(environment=ARRAY | {"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_COUNT": "2"})


def test_one_writer(tmp_path):
    with writing(tmp_path):
        for place in ((0, 1), (0, 2)):
            with (
                pytest.raises(CamaeError, match=f"is being written by process {os.getpid()} on"),
                writing(tmp_path, *place),
            ):
                pass
    with writing(tmp_path, 0, 2), writing(tmp_path, 1, 2):
        with pytest.raises(CamaeError, match="is being written by process"), writing(tmp_path):
            pass
        with pytest.raises(CamaeError, match="is being written by process"), writing(tmp_path, 1, 2):
            pass
        with (
            pytest.raises(CamaeError, match="as one of 2 processes, and this is one of 3"),
            writing(tmp_path, 2, 3),
        ):
            pass
    with writing(tmp_path):
        pass


def test_the_lock_of_a_dead_process_is_free(tmp_path):
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom camae.locks import writing\n"
        "with writing(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(CamaeError, match=f"written by process {other.pid} "), writing(tmp_path):
            pass
        other.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while True:
        try:
            with writing(tmp_path):
                return
        except CamaeError:
            assert time.monotonic() < deadline
