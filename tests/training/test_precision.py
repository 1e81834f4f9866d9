"""Precision chosen by measuring: the run is the one with that precision set, says so, and keeps it when resumed."""

import json

import pytest
import torch

from camae.training import precision, trainer


def losses(run):
    return [row["loss"] for row in run.history]


@pytest.fixture
def gain(monkeypatch):
    """gain(x): what the measurement says, after it has run its passes."""

    def fix(value):
        original = precision.measured_gain

        def measured(model, run_pass):
            assert original(model, run_pass) > 0
            return value

        monkeypatch.setattr(trainer, "measured_gain", measured)

    return fix


@pytest.mark.parametrize(("measured", "taken"), [(1.09, "fp32"), (1.11, "bf16")])
def test_auto_is_the_run_with_what_it_takes(screen, tmp_path, train, interrupt, gain, measured, taken):
    """Bit for bit, also where stopped and resumed on a machine that would now choose the other."""
    fixed = train(screen, tmp_path / "fixed", 5, precision=taken, checkpoint_every=2)
    gain(measured)
    with pytest.warns(UserWarning, match=f"precision {taken}: a pass of the first batch took"):
        auto = train(screen, tmp_path / "auto", 5, precision="auto", checkpoint_every=2)
    assert losses(auto) == losses(fixed)
    (event,) = [json.loads(line) for line in (tmp_path / "auto" / "events.jsonl").read_text().splitlines()]
    assert event["step"] == 0
    assert f"{1 / measured:.2f} times as long in bf16 as in fp32" in event["event"]
    assert json.loads((tmp_path / "auto" / "run.json").read_text())["precision"] == taken
    with interrupt(3), pytest.warns(UserWarning, match="precision"):
        train(screen, tmp_path / "parts", 5, precision="auto", checkpoint_every=2)
    gain(1 / measured)
    resumed = train(screen, tmp_path / "parts", 5, precision="auto", checkpoint_every=2)
    assert losses(resumed)[-1] == losses(fixed)[-1]
    for name, value in fixed.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_a_measurement_leaves_no_trace():
    """Both in turn, one warm-up each; gradients cleared, buffers (running statistics) as they were."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3)).train()
    before, seen = {k: v.clone() for k, v in model.state_dict().items()}, []

    def run_pass(name):
        seen.append(name)
        model(torch.randn(4, 3)).sum().backward()

    assert precision.measured_gain(model, run_pass) > 0
    assert seen == ["fp32", "bf16"] * 4
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_settings():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [precision.first_precision(None, d) for d in (cpu, cuda)] == ["fp32", "bf16"]
    assert [precision.first_precision("auto", d) for d in (cpu, cuda)] == ["fp32", "bf16"]
    assert [precision.first_precision("fp32", d) for d in (cpu, cuda)] == ["fp32", "fp32"]
