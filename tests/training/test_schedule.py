"""Learning-rate schedules against torch's own and closed values."""

import pytest
import torch

from camae.training.optimization import learning_rate


def test_one_cycle_is_torchs():
    steps, peak = 200, 3e-4
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peak, total_steps=steps, pct_start=0.105, final_div_factor=1e4
    )
    for step in range(steps):
        # torch puts the peak at pct_start * steps - 1; ours at warmup * steps
        assert learning_rate(step, steps, peak, "onecycle", 0.1) == pytest.approx(
            optimizer.param_groups[0]["lr"], rel=1e-6, abs=1e-12
        )
        optimizer.step()
        if step + 1 < steps:
            scheduler.step()


def test_cosine_and_constant():
    assert learning_rate(0, 100, 1.0, "cosine", 0.1) == pytest.approx(1 / 11)
    assert learning_rate(55, 100, 1.0, "cosine", 0.1) == pytest.approx(0.5)
    assert learning_rate(99, 100, 1.0, "constant", 0.1) == 1.0
