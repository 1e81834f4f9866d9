"""Progress: plain lines where output is no console."""

import io

import pytest
from rich.console import Console

from camae.progress import PlainLines, progress_bar, seconds_between_lines, time_left
from camae.training.run_log import LiveTable


class Clock:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_fault_30_lines_come_at_a_steady_pace():
    clock, stream = Clock(), io.StringIO()
    lines = PlainLines(every=10, stream=stream, clock=clock)
    for second in range(60):
        clock.now = second
        if lines.due:
            lines.say(f"at {second}")
    assert stream.getvalue().splitlines() == [f"at {s}" for s in (10, 20, 30, 40, 50)]


def test_fault_30_a_bar_on_no_terminal_writes_lines(capsys, monkeypatch):
    monkeypatch.setenv("CAMAE_PROGRESS_SECONDS", "1e-9")
    with progress_bar() as bar:
        task = bar.add_task("embedding [sites]", total=4, status="")
        for done in range(1, 5):
            bar.update(task, completed=done, status=f"{done} crops/s")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("embedding [sites]: 1/4 (25%), 0:00:0")
    assert printed[0].endswith("left, 1 crops/s")
    assert printed[-1] == "embedding [sites]: 4/4 (100%), 4 crops/s"


def test_fault_30_short_work_is_silent(capsys):
    with progress_bar() as bar:
        bar.update(bar.add_task("packing", total=None, status=""), completed=1, total=2)
    assert capsys.readouterr().out == ""
    with progress_bar(disable=True) as bar:
        bar.update(bar.add_task("packing", total=1, status=""), completed=1)
    assert capsys.readouterr().out == ""


def test_fault_30_training_tells_validations_checkpoints_and_time(monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=False)
    with LiveTable(100, 0, console=console) as live:
        for step in range(1, 101):
            live.add({"step": step, "loss": 1 / step, "lr": 1e-3} | ({"val_loss": 0.5} if step == 50 else {}))
            live.tick(step)
        live.note("checkpoint after step 100")
    printed = console.file.getvalue().splitlines()
    assert printed[0] == "training: step 0 of 100"
    assert printed[1].startswith("step 50/100, loss 0.0200, val 0.5000, lr 1.0e-03")
    assert printed[2].startswith("step 100/100, loss 0.0100")
    assert printed[3:] == ["checkpoint after step 100"]


def test_fault_30_quiet_says_nothing():
    console = Console(file=io.StringIO(), force_terminal=False)
    with LiveTable(2, console=console, disable=True) as live:
        live.add({"step": 2, "loss": 1.0})
        live.note("x")
    assert console.file.getvalue() == ""


def test_a_stream_that_refuses_costs_the_line():
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    PlainLines(stream=Full()).say("x")


@pytest.mark.parametrize(("value", "seconds"), [("5", 5.0), ("", 30.0), ("soon", 30.0), ("-1", 30.0)])
def test_pace_by_the_environment(monkeypatch, value, seconds):
    monkeypatch.setenv("CAMAE_PROGRESS_SECONDS", value)
    assert seconds_between_lines() == seconds


def test_time_left():
    assert time_left(10, 5, 10) == "0:00:20 left"
    assert time_left(10, 0, 10) == ""
