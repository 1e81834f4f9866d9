"""Run folder: one training at a time, stopped by signals, claimed by runs that can start, on disks that refuse."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings

import pytest
from slow_steps import losses, slowly

import camae
from camae.errors import CamaeError, OutputError
from camae.training import checkpoint_files as checkpoints
from camae.training.run_log import read_log

pytestmark = pytest.mark.timeout(900)

SLOWLY = slowly("0.1")


def steps_of(out):
    return [checkpoints.step_of(folder) for folder in checkpoints.checkpoint_folders(out)]


@pytest.fixture
def start(screen, tiny):
    """start(out, steps, before="", **settings): the run in a process of its own."""

    def popen(out, steps, before="", **settings):
        options = {"out": str(out), "steps": steps} | tiny | settings
        script = f"{before}\nimport camae\ncamae.train({str(screen)!r}, **{options!r})"
        return subprocess.Popen(
            [sys.executable, "-c", script],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return popen


def wait_for_steps(process, out, count):
    deadline = time.monotonic() + 300
    while len(read_log(out / "log.jsonl")) < count and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


def test_fault_19_two_trainings_in_one_folder(start, screen, train, tmp_path):
    """The second is refused and harms nothing; a folder whose holder was killed is free."""
    out = tmp_path / "run"
    process = start(out, 60, before=SLOWLY, checkpoint_every=5)
    wait_for_steps(process, out, 2)
    with pytest.raises(
        CamaeError, match=f"is being written by process {process.pid} on .*choose another folder"
    ):
        train(screen, out, 60)
    with pytest.raises(CamaeError, match="is being written by"):
        train(screen, out, 60, resume=False)
    wait_for_steps(process, out, 7)
    process.kill()
    process.communicate()
    assert steps_of(out)
    finished = train(screen, out, 60, checkpoint_every=5)
    whole = train(screen, tmp_path / "whole", 60, checkpoint_every=5)
    assert losses(finished) == losses(whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_fault_27_signals_write_a_checkpoint_and_stop(start, screen, train, tmp_path, number):
    out, steps = tmp_path / "run", 40
    process = start(out, steps, before=SLOWLY, checkpoint_every=1000)
    wait_for_steps(process, out, 3)
    process.send_signal(number)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 128 + number, said
    stopped = steps_of(out)[-1]
    assert 3 <= stopped < steps
    events = [json.loads(line)["event"] for line in (out / "events.jsonl").read_text().splitlines()]
    assert events == [f"stopped by {number.name} after step {stopped}; the same command continues the run"]
    whole = train(screen, tmp_path / "whole", steps, checkpoint_every=1000)
    assert losses(train(screen, out, steps, checkpoint_every=1000)) == losses(whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_fault_27_a_second_signal_stops_at_once(start, tmp_path, number):
    slowest = slowly("0.1 if arguments[1] < 2 else 100")
    process = start(tmp_path / "run", 10, before=slowest)
    wait_for_steps(process, tmp_path / "run", 2)
    time.sleep(0.3)
    process.send_signal(number)
    time.sleep(0.5)
    assert process.poll() is None  # it waits for the end of the step
    began = time.monotonic()
    process.send_signal(number)
    process.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert process.returncode in (-number, 1, 130)  # 1: Python's own end after a KeyboardInterrupt
    assert steps_of(tmp_path / "run") == []


def test_fault_27_a_signal_that_is_ignored_stays_ignored(start, tmp_path):
    """Under nohup a closed terminal ends nothing."""
    ignored = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + SLOWLY
    process = start(tmp_path / "run", 8, before=ignored)
    wait_for_steps(process, tmp_path / "run", 2)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=300)
    assert process.returncode == 0


def test_fault_27_a_refused_run_has_not_claimed_its_folder(screen, train, tmp_path):
    for path in screen.parent.glob("*.tif"):
        path.rename(path.with_suffix(".away"))
    with pytest.raises(CamaeError, match=r"P1_A0[1-4]_\w+\.tif|P2_A0[1-4]_\w+\.tif"):
        train(screen, tmp_path / "run", 2)
    assert not (tmp_path / "run").exists()
    for path in screen.parent.glob("*.away"):
        path.rename(path.with_suffix(".tif"))
    assert len(train(screen, tmp_path / "run", 2, lr=1e-3).history) == 2


def test_fault_23_a_file_where_the_folder_should_be(screen, train, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OutputError, match=r"a file .*in the way"):
            train(screen, out, 1)
    assert (tmp_path / "file").read_text() == "mine"


def test_fault_23_a_full_disk_at_the_pictures_does_not_fail_a_finished_training(
    screen, tmp_path, train, monkeypatch
):
    from camae.reporting import figures

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(figures, "save_png", full)
    with pytest.warns(UserWarning, match="the pictures could not be drawn"):
        run = train(screen, tmp_path / "run", 2, picture_every=2)
    assert camae.load(run.path).channels == ["DNA", "ER", "Mito"]


class Disk:
    """A disk that is full from the n-th name on that is made or renamed on it: so every write begins or ends."""

    def __init__(self, monkeypatch, out):
        self.out, self.count, self.full_from = str(out), 0, None
        replace, mkdir = os.replace, os.mkdir

        def full_replace(source, target, **options):
            self.check(target)
            return replace(source, target, **options)

        def full_mkdir(path, *mode, **options):
            if not os.path.isdir(path):
                self.check(path)
            return mkdir(path, *mode, **options)

        monkeypatch.setattr(os, "replace", full_replace)
        monkeypatch.setattr(os, "mkdir", full_mkdir)

    def check(self, path):
        if str(path).startswith(self.out):
            self.count += 1
            if self.full_from is not None and self.count >= self.full_from:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))


WRITES = {"checkpoint_every": 2, "picture_every": 4, "ema": 0.9}


def ends_well(train, screen, out, whole):
    """Whether a run on a disk that refuses ends with its model; else it ends with one sentence."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert losses(train(screen, out, 4, **WRITES)) == losses(whole)
        except CamaeError as error:
            sentence = str(error)
        else:
            return True
    assert "disk is full" in sentence
    assert "\n" not in sentence
    return False


@pytest.mark.full
def test_fault_23_a_full_disk_at_every_write_loses_nothing(screen, tmp_path, train, monkeypatch):
    """Each write of a run in its turn finds the disk full: one sentence or a finished run; resumed, it is as ever."""
    whole = train(screen, tmp_path / "whole", 4, **WRITES)
    with monkeypatch.context() as patch:
        disk = Disk(patch, tmp_path / "counted")
        train(screen, tmp_path / "counted", 4, **WRITES)
        writes = disk.count
    assert writes >= 10
    ended = []
    for number in range(1, writes + 1):
        out = tmp_path / f"full{number}"
        with monkeypatch.context() as patch:
            Disk(patch, out).full_from = number
            ended.append(ends_well(train, screen, out, whole))
        assert not list(out.glob("checkpoints/.*")), number
        assert losses(train(screen, out, 4, **WRITES)) == losses(whole), number
    assert set(ended) == {True, False}  # some writes cost the run nothing, others end it


@pytest.mark.full
def test_fault_23_a_small_disk_of_every_size(screen, tmp_path, train):
    """A real file system that is full at another byte each time; with room again the run goes on exactly."""
    whole = train(screen, tmp_path / "whole", 4, **WRITES)
    needed = sum(p.stat().st_size for p in whole.path.rglob("*") if p.is_file())
    disk = tmp_path / "disk"
    disk.mkdir()
    ended = []
    for share in (0.02, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05, 2.0):
        size = max(4096, int(share * needed))
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        if os.getuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
            pytest.skip("no file system can be mounted here")
        try:
            ended.append(ends_well(train, screen, disk / "run", whole))
            subprocess.run(["mount", "-o", f"remount,size={20 * needed}", str(disk)], check=True)
            assert losses(train(screen, disk / "run", 4, **WRITES)) == losses(whole), size
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    assert ended[-1]
    assert not ended[0]


@pytest.mark.full
def test_killed_ten_times_with_pictures_it_is_the_run_it_would_have_been(start, screen, train, tmp_path):
    """Pictures and checkpoints at every other step; ten kills at random moments, some of them before the first step."""
    settings = {"checkpoint_every": 2, "picture_every": 2, "ema": 0.9}
    steps, out, random_ = 30, tmp_path / "run", random.Random(0)
    whole = train(screen, tmp_path / "whole", steps, **settings)
    for _ in range(10):
        process = start(out, steps, before=SLOWLY, **settings)
        reached = len(read_log(out / "log.jsonl"))
        wait_for_steps(process, out, reached + random_.randint(0, 2) if reached else 1)
        time.sleep(random_.uniform(0, 0.5))
        process.kill()
        process.communicate()
    resumed = train(screen, out, steps, **settings)
    assert losses(resumed) == losses(whole)
    assert [row["step"] for row in resumed.history] == list(range(1, steps + 1))
    names = {p.name for p in out.iterdir()}
    assert names == {p.name for p in whole.path.iterdir()}, "files of killed writes are left"
    assert (out / "model.safetensors").read_bytes() == (whole.path / "model.safetensors").read_bytes()


def test_fault_28_equal_runs_have_equal_files(screen, train, tmp_path):
    """Weights and configuration are the same bytes; everybody whom the umask lets may read them."""
    one, two = (train(screen, tmp_path / name, 3, optimizer="adamw", ema=0.9).path for name in "ab")
    before = os.umask(0)
    os.umask(before)
    for path in one.rglob("*.safetensors"):
        assert path.read_bytes() == (two / path.relative_to(one)).read_bytes(), path
        assert path.stat().st_mode & 0o777 == 0o666 & ~before, path


def test_fault_30_training_without_a_terminal_tells_where_it_stands(start, tmp_path, monkeypatch):
    monkeypatch.setenv("CAMAE_PROGRESS_SECONDS", "0.3")
    process = start(tmp_path / "run", 12, before=SLOWLY, quiet=False, checkpoint_every=6, log_every=1)
    printed, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    lines = printed.splitlines()
    assert lines[0] == "training: step 0 of 12"
    assert "checkpoint after step 6" in lines
    told = [line for line in lines if line.startswith("step ")]
    assert 3 <= len(told) <= 12
    assert told[-1].startswith("step 12/12, loss ")
