"""Throughput meter: FLOP/s, MFU and memory in the rows of the log."""

import pytest
import torch

from camae.model.flops import model_flops
from camae.training.metrics import Meter


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
