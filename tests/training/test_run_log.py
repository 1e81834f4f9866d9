"""Run log: JSON lines, TensorBoard, and the live table."""

import builtins
import json

import pytest
from rich.console import Console

from camae.errors import MissingBackendError
from camae.training.run_log import LiveTable, read_log


def test_live_table_shows_the_last_rows():
    console = Console(width=100, record=True, force_terminal=False)
    live = LiveTable(100, disable=True)
    for step in range(1, 21):
        live.add({"step": step, "loss": 1 / step, "lr": 1e-3, "crops_per_second": 12.0, "probe_recall": 0.25})
    console.print(live)
    text = console.export_text()
    assert "0.0500" in text
    assert "0.250" in text
    assert "0.2000" not in text  # step 5 has scrolled away
    assert "MFU" not in text  # no row had it
    assert "20/100" in text


def test_tensorboard_says_what_is_missing(screen, tmp_path, train, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **options):
        if name.startswith(("tensorboard", "torch.utils.tensorboard")):
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingBackendError, match="pip install tensorboard"):
        train(screen, tmp_path / "run", 1, tensorboard=True)


def test_tensorboard_holds_the_log(screen, tmp_path, train):
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(screen, tmp_path / "run", 3, tensorboard=True)
    events = EventAccumulator(str(run.path / "tensorboard")).Reload()
    found = [(e.step, e.value) for e in events.Scalars("loss")]
    assert found == [(row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in run.history]


def test_log_is_one_json_object_a_line(screen, tmp_path, train):
    run = train(screen, tmp_path / "run", 2)
    lines = (run.path / "log.jsonl").read_text().splitlines()
    assert (
        [json.loads(line)["step"] for line in lines]
        == [1, 2]
        == [r["step"] for r in read_log(run.path / "log.jsonl")]
    )
