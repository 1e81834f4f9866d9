"""What clusters do to runs: signals, full disks, damaged files, losses that are no numbers."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch
from safetensors.torch import load_file
from slow_steps import losses, slowly

from camae.errors import CamaeError
from camae.training import checkpoint_files as checkpoints
from camae.training import trainer as loop
from camae.training.config import TrainConfig
from camae.training.optimization import build_optimizer
from camae.training.run_log import RunLog, read_log
from camae.training.stability import SpikeGuard, step_unless

SLOWLY = slowly("0.2")


def events(out):
    return [json.loads(line)["event"] for line in (out / "events.jsonl").read_text().splitlines()]


def steps_of(out):
    return [checkpoints.step_of(folder) for folder in checkpoints.checkpoint_folders(out)]


@pytest.fixture
def start(screen, tiny):
    """start(out, steps, **settings): the run in a process of its own."""

    def popen(out, steps, before="", **settings):
        options = {"out": str(out), "steps": steps} | tiny | settings
        script = f"{before}\nimport camae\ncamae.train({str(screen)!r}, **{options!r})"
        return subprocess.Popen(
            [sys.executable, "-c", script], env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE
        )

    return popen


def wait_for_steps(process, out, count):
    deadline = time.monotonic() + 300
    while len(read_log(out / "log.jsonl")) < count and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


def test_sigusr1_saves_and_sigterm_saves_and_stops(screen, train, start, tmp_path):
    """The stopped run goes on exactly where it was: its losses are those of a run that was left alone."""
    out, steps = tmp_path / "run", 40
    process = start(out, steps, before=SLOWLY, checkpoint_every=1000)
    wait_for_steps(process, out, 5)
    process.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + 300
    while not steps_of(out) and time.monotonic() < deadline:
        time.sleep(0.01)
    saved = steps_of(out)
    assert len(saved) == 1
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, said
    stopped = steps_of(out)[-1]
    assert saved[0] <= stopped < steps
    assert len(read_log(out / "log.jsonl")) == stopped
    assert events(out) == [f"stopped by SIGTERM after step {stopped}; the same command continues the run"]
    resumed = train(screen, out, steps, checkpoint_every=1000)
    whole = train(screen, tmp_path / "whole", steps, checkpoint_every=1000)
    assert losses(resumed) == losses(whole)


def test_checkpoints_by_the_clock(screen, train, tmp_path):
    train(screen, tmp_path / "run", 5, checkpoint_minutes=1e-9, keep_checkpoints=0)
    assert steps_of(tmp_path / "run") == [1, 2, 3, 4, 5]
    with pytest.raises(CamaeError, match="checkpoint_minutes is 0, and must be above 0"):
        train(screen, tmp_path / "none", 5, checkpoint_minutes=0)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "state.json", "checksums.json"]
)
def test_a_damaged_checkpoint_is_found_and_the_one_before_used(screen, train, tmp_path, name):
    out = tmp_path / "run"
    whole = train(screen, out, 6, checkpoint_every=2, keep_checkpoints=3)
    newest = out / "checkpoints" / "step_00000006"
    content = bytearray((newest / name).read_bytes())
    content[len(content) // 2] ^= 1
    (newest / name).write_bytes(content)
    with pytest.warns(UserWarning, match="step_00000006 is damaged .*: using step_00000004"):
        resumed = train(screen, out, 6, checkpoint_every=2, keep_checkpoints=3)
    assert losses(resumed) == losses(whole)
    assert (out / "checkpoints" / "damaged_step_00000006").is_dir()
    assert steps_of(out) == [2, 4, 6]
    if name != "checksums.json":  # where a flipped bit names another file, or is no JSON at all
        assert f"({name} does not have its checksum): using step_00000004, the one before" in events(out)[0]


def test_nothing_but_damaged_checkpoints(screen, train, tmp_path):
    out = tmp_path / "run"
    train(screen, out, 2)
    (out / "checkpoints" / "step_00000002" / "model.safetensors").unlink()
    with pytest.raises(CamaeError, match="no intact checkpoint is left"):
        train(screen, out, 2)


def test_a_full_disk_keeps_the_last_good_checkpoint(screen, train, tmp_path, monkeypatch):
    """ENOSPC from the third checkpoint on: the run ends well, says so, and its second checkpoint is intact."""
    out, real, calls = tmp_path / "run", checkpoints.save_tensors, []

    def full(tensors, path, *rest):
        calls.append(path)
        if len(calls) > 2:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(tensors, path, *rest)

    monkeypatch.setattr(checkpoints, "save_tensors", full)
    with pytest.warns(UserWarning, match="the disk is full.*step_00000004 stays the last good one"):
        run = train(screen, out, 6, checkpoint_every=2)
    assert steps_of(out) == [2, 4]
    assert not list((out / "checkpoints").glob(".*"))
    monkeypatch.setattr(checkpoints, "save_tensors", real)
    assert losses(train(screen, out, 6, checkpoint_every=2)) == losses(run)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a file on a full disk")
def test_a_full_disk_costs_rows_of_the_log_not_the_run(tmp_path):
    log = RunLog(tmp_path / "log.jsonl", 0)
    log._file.close()
    log._file = open("/dev/full", "a", encoding="utf-8")  # noqa: SIM115
    with pytest.warns(UserWarning, match="a row of the log could not be written"):
        log.write({"step": 1})
    log.close()


def test_a_disk_that_refuses_a_real_process(start, train, screen, tmp_path):
    """A file-size limit of the kernel's: every checkpoint fails in the middle of a write, the log goes on."""
    out = tmp_path / "run"
    limit = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({30_000}, {resource.RLIM_INFINITY}))"
    )
    process = start(out, 3, before=limit, checkpoint_every=1)
    _, said = process.communicate(timeout=300)
    assert steps_of(out) == []
    assert not list((out / "checkpoints").glob(".*"))
    assert len(read_log(out / "log.jsonl")) == 3
    assert b"could not be written" in said
    assert process.returncode != 0  # the model itself did not fit either, and that is an error
    assert losses(train(screen, out, 3))


def _spoiled(bad_steps, value):
    """A _train_losses whose loss is multiplied by `value` in the given steps (counted over all calls)."""
    original, calls = loop.Trainer._train_losses, []

    def losses(self, *rest):
        calls.append(1)
        found = original(self, *rest)
        if len(calls) - 1 in bad_steps:
            found = found | {"total": found["total"] * value}
        return found

    return losses


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 100.0])
def test_bad_steps_are_skipped_and_counted(screen, train, tmp_path, monkeypatch, value):
    bad = {24, 25, 27}
    monkeypatch.setattr(loop.Trainer, "_train_losses", _spoiled(bad, value))
    before = {}
    step = loop.Trainer._step

    def watched(self, n, batches):
        weights = {k: v.clone() for k, v in self.model.state_dict().items()}
        found = step(self, n, batches)
        before[n] = all(torch.equal(v, weights[k]) for k, v in self.model.state_dict().items())
        return found

    monkeypatch.setattr(loop.Trainer, "_step", watched)
    run = train(screen, tmp_path / "run", 30)
    assert {n for n, unchanged in before.items() if unchanged} == bad
    assert [row["skipped"] for row in run.history] == [sum(b <= n for b in bad) for n in range(30)]


def test_many_bad_steps_roll_back(screen, train, tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setattr(loop.Trainer, "_train_losses", _spoiled(range(5, 9), float("nan")))
    with pytest.warns(
        UserWarning, match="4 steps in a row were skipped up to step 9: back to .*step_00000003"
    ):
        run = train(screen, out, 12, checkpoint_every=3, rollback_after=4, keep_checkpoints=0)
    assert [r.get("rolled_back_to") for r in run.history] == [None] * 8 + [3] + [None] * 3
    assert run.history[-1]["skipped"] == 4
    # within the row of bad steps no checkpoint is written: step 6 is missing, and 9 is written after going back
    assert steps_of(out) == [3, 9, 12]
    nine, three = (load_file(out / f"checkpoints/step_0000000{n}/model.safetensors") for n in (9, 3))
    assert all(torch.equal(nine[name], value) for name, value in three.items())


@pytest.mark.parametrize(
    ("first", "every", "sentence"),
    [
        (2, 5, "there is no checkpoint to go back to: lower lr"),
        (6, 5, "going back did not help"),
        (6, 3, "going back did not help"),  # checkpoints fall on the steps that roll back
    ],
)
def test_bad_steps_without_end(screen, train, tmp_path, monkeypatch, first, every, sentence):
    monkeypatch.setattr(loop.Trainer, "_train_losses", _spoiled(range(first, 1000), float("nan")))
    warnings.simplefilter("ignore")  # pytest restores the filters
    with pytest.raises(CamaeError, match=sentence):
        train(screen, tmp_path / "run", 40, rollback_after=3, checkpoint_every=every)


def test_the_guard_survives_a_checkpoint(screen, train, tmp_path):
    """Its mean is part of the state: a run stopped and continued skips what an unbroken one skips."""
    one, two = SpikeGuard(5.0, torch.device("cpu")), SpikeGuard(5.0, torch.device("cpu"))
    values = torch.rand(40, generator=torch.Generator().manual_seed(0)) + 0.5
    values[[25, 33]] = torch.tensor([50.0, float("nan")])
    verdicts = [bool(one.judge(v, torch.ones(()))) for v in values]
    assert [i for i, bad in enumerate(verdicts) if bad] == [25, 33]
    first = [bool(two.judge(v, torch.ones(()))) for v in values[:27]]
    three = SpikeGuard(5.0, torch.device("cpu"))
    three.restore(json.loads(json.dumps(two.state())))
    assert first + [bool(three.judge(v, torch.ones(()))) for v in values[27:]] == verdicts
    assert three.counts() == one.counts() == (0, 2)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["lion", "adamw"])
def test_bad_steps_change_nothing_on_the_device(name):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: the optimizers' own skipping cannot run")
    model = torch.nn.Linear(8, 8).cuda()
    optimizer = build_optimizer(model, TrainConfig(optimizer=name))
    for bad in (False, True, False, True):
        model(torch.rand(4, 8, device="cuda")).square().sum().backward()
        if bad:
            model.weight.grad[0, 0] = float("nan")
        kept = [p.detach().clone() for p in model.parameters()]
        state = [v.clone() for s in optimizer.state.values() for v in s.values()]
        step_unless(optimizer, torch.tensor(bad, device="cuda"))
        same = all(torch.equal(a, b) for a, b in zip(kept, model.parameters(), strict=True))
        assert same == bad
        if bad:
            now = [v for s in optimizer.state.values() for v in s.values()]
            assert all(torch.equal(a, b) for a, b in zip(state, now, strict=True))
        optimizer.zero_grad()
