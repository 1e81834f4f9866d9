"""What a run shows: numbers of speed, the live table, TensorBoard, probes, runs side by side."""

import builtins
import json

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from camae.cli import app
from camae.dataloader.manifest import Manifest
from camae.errors import CamaeError, MissingBackendError
from camae.model.flops import model_flops
from camae.training.compare_runs import compare_runs
from camae.training.evaluation import Probe, linear_accuracy
from camae.training.metrics import Meter
from camae.training.run_log import LiveTable, read_log


def test_rows_hold_speed_and_memory(screen, tmp_path, train):
    run = train(screen, tmp_path / "run", 2)
    row = run.history[-1]
    flops = model_flops(run.model.config, (3,) * 4, 0.75).training
    # the batch's FLOPs over the seconds that crops_per_second implies: equal but for rounding
    assert row["tflops"] * 1e12 == pytest.approx(flops * row["crops_per_second"] / 4, rel=1e-6)
    assert "mfu" not in row  # a CPU's peak is not known
    assert 0.05 < row["memory_gb"] < 64
    assert 0 <= row["data_wait_share"] <= 1


def test_mfu_where_the_peak_is_known(screen, tmp_path, train):
    run = train(screen, tmp_path / "run", 1)
    meter = Meter(run.model, torch.device("cpu"), "bf16", processes=2)
    meter.peak = 1e12
    meter.count((3, 3), 0.75)
    flops = model_flops(run.model.config, (3, 3), 0.75).training
    # two processes of that many FLOPs in half a second, of two peaks of 1e12
    assert meter.row(0.5)["mfu"] == pytest.approx(flops / 0.5 / 1e12)
    assert "mfu" not in meter.row(0.5)  # counted anew


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


def labeled(screen):
    """The screen's manifest with a label that its plates share."""
    manifest = Manifest.read(screen)
    label = ["a" if i % 2 else "b" for i in range(len(manifest))]
    return Manifest(manifest.table.assign(Metadata_Label=label), manifest.root)


def test_probe_is_logged_and_changes_nothing(screen, tmp_path, train):
    path = tmp_path / "labeled.csv"
    labeled(screen).write(path)
    plain = train(screen, tmp_path / "plain", 4)
    probe = {"data": str(path), "every": 2, "label": "Metadata_Label"}
    probed = train(screen, tmp_path / "probed", 4, probe=probe)
    assert [r["step"] for r in probed.history if "probe_accuracy" in r] == [2, 4]
    assert probed.history[1]["probe_chance"] == pytest.approx(0.5)
    assert [r["loss"] for r in probed.history] == [r["loss"] for r in plain.history]


@pytest.mark.parametrize(("signal", "low", "high"), [(3.0, 0.95, 1.0), (0.0, 0.0, 0.45)])
def test_linear_accuracy_finds_what_is_there_on_other_plates(signal, low, high):
    """Four classes along known directions, two plates: near 1 with signal, near chance (0.25) without.

    Without signal right answers are binomial(200, 1/4): mean 50, standard deviation 6.1, so under 90 surely.
    """
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 4, 200)
    features = rng.standard_normal((200, 16)) + signal * np.eye(16)[classes] * 2
    table = pd.DataFrame(
        {
            "Metadata_Plate": [f"P{i % 2}" for i in range(200)],
            "Metadata_Label": classes.astype(str),
            "DNA": "x.tif",
        }
    )
    found = linear_accuracy(features, Manifest(table), "Metadata_Label")
    assert low <= found["probe_accuracy"] <= high
    assert found["probe_chance"] == np.bincount(classes).max() / 200


@pytest.mark.parametrize(
    ("probe", "sentence"),
    [
        ({"every": 3}, "probe needs data"),
        ({"data": "x.csv", "color": 1}, "unknown probe settings color"),
        ({"data": "x.csv", "kind": "knn"}, "not 'linear' or 'recall'"),
        ({"data": "x.csv", "kind": "recall"}, "needs pairs"),
        ({"data": "x.csv", "every": 0}, "at least 1"),
    ],
)
def test_bad_probes_are_one_sentence(probe, sentence):
    with pytest.raises(CamaeError, match=sentence):
        Probe.from_settings(probe)


def test_no_probe_without_settings():
    assert Probe.from_settings({}) is None


def test_runs_side_by_side(screen, tmp_path, train):
    a = train(screen, tmp_path / "a", 3, val="plate")
    b = train(screen, tmp_path / "b", 4, lr=1e-3)
    table = compare_runs([a.path, b.path], tmp_path / "compared")
    assert list(table.columns) == ["a", "b"]
    assert table.loc["steps"].tolist() == [3, 4]
    assert table.loc["loss (last tenth)", "b"] == pytest.approx(b.history[-1]["loss"])
    assert table.loc["val_loss (last)", "a"] == pytest.approx(a.history[-1]["val_loss"])
    assert table.loc["setting lr", "b"] == "0.001"
    assert "setting batch_size" not in table.index
    assert (tmp_path / "compared" / "curves.png").stat().st_size > 1000
    assert "setting lr" in (tmp_path / "compared" / "compare.csv").read_text()


def test_runs_compare_at_the_shell(screen, tmp_path, train):
    for name in ("a", "b"):
        train(screen, tmp_path / name, 2)
    result = CliRunner().invoke(app, ["runs", "compare", str(tmp_path / "a"), str(tmp_path / "b")])
    assert result.exit_code == 0
    assert "crops_per_second" in result.output


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(CamaeError, match="not a run of camae"):
        compare_runs([tmp_path])


def test_log_is_one_json_object_a_line(screen, tmp_path, train):
    run = train(screen, tmp_path / "run", 2)
    lines = (run.path / "log.jsonl").read_text().splitlines()
    assert (
        [json.loads(line)["step"] for line in lines]
        == [1, 2]
        == [r["step"] for r in read_log(run.path / "log.jsonl")]
    )


def test_recall_probe_finds_planted_pairs(tmp_path):
    """Ten pairs that share a direction of 16, twenty controls, two plates: all are in the tails; chance is 0.1."""
    rng = np.random.default_rng(0)
    names = [f"G{i}" for i in range(20)]
    axis = rng.standard_normal((10, 16))
    rows, features = [], []
    for plate in ("P1", "P2"):
        for i, name in enumerate(names):
            rows.append({"Metadata_Plate": plate, "Metadata_Perturbation": name, "Metadata_control_type": ""})
            features.append(8 * axis[i // 2] + rng.standard_normal(16))
        for _ in range(40):
            rows.append(
                {"Metadata_Plate": plate, "Metadata_Perturbation": "", "Metadata_control_type": "negcon"}
            )
            features.append(rng.standard_normal(16))
    manifest = Manifest(pd.DataFrame(rows).assign(DNA="x.tif"))
    pairs = tmp_path / "pairs.csv"
    pd.DataFrame({"a": names[::2], "b": names[1::2]}).to_csv(pairs, index=False)
    probe = Probe(data=manifest, kind="recall", pairs=pairs)
    # 5 % of 190 pairs are 9 or 10 in the upper tail, and ten are planted
    assert probe.recall(np.array(features), manifest) >= 0.9
