"""Learning-rate schedules against torch's own and closed values, mask-ratio schedules, and the EMA's formula."""

import pytest
import torch

from camae.training.optimization import EMA, learning_rate, mask_ratio_at


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


def test_mask_ratio_by_step():
    assert mask_ratio_at(7, 10, 0.75) == 0.75
    assert [mask_ratio_at(s, 10, (0.75, 0.85)) for s in range(4)] == [0.75, 0.85, 0.75, 0.85]
    ramp = ((0.2, 0.6), (0.6, 0.8))
    # 11 steps: step s is at share s / 10; on the line 0.6 + 0.2 * (share - 0.2) / 0.4
    assert [mask_ratio_at(s, 11, ramp) for s in (0, 2, 4, 6, 10)] == pytest.approx([0.6, 0.6, 0.7, 0.8, 0.8])


def test_average_follows_its_formula():
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(1.0)
    ema = EMA(layer, 0.5)
    expected = 1.0
    for step, value in enumerate([2.0, 4.0, 8.0]):
        layer.weight.data.fill_(value)
        ema.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert layer.weight.item() == 8.0
    ema.copy_to_weights()
    assert layer.weight.item() == pytest.approx(expected, rel=1e-6)
