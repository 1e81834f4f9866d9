"""Steps whose loss is no number, or far above the recent ones, are not taken. Decided without the host."""

from __future__ import annotations

import torch

_SPAN = 20  # accepted steps the running mean looks back on, and needs before it is trusted


class SpikeGuard:
    """Judges every step from its loss and gradient norm, on their device: the host never waits for the verdict.

    factor: a loss above this many times the mean of about the last 20 accepted ones is a spike; 0: only
        losses and gradients that are not finite are refused.
    """

    def __init__(self, factor: float, device: torch.device):
        self.factor = factor
        # mean of accepted losses, accepted steps, skipped steps in a row, skipped steps in all
        self._state_4 = torch.zeros(4, dtype=torch.float64, device=device)

    def judge(self, loss: torch.Tensor, grad_norm: torch.Tensor) -> torch.Tensor:
        """() bool: skip this step. The running mean and the counts take note of it."""
        mean, accepted, streak, skipped = self._state_4.unbind()
        bad = ~(torch.isfinite(loss) & torch.isfinite(grad_norm))
        if self.factor:
            bad = bad | ((accepted >= _SPAN) & (loss > self.factor * mean))
        moved = mean + (loss.double() - mean) / (accepted + 1).clamp(max=_SPAN)
        good = (~bad).double()
        self._state_4 = torch.stack(
            [torch.where(bad, mean, moved), accepted + good, (streak + 1) * (1 - good), skipped + 1 - good]
        )
        return bad

    def counts(self) -> tuple[int, int]:
        """(skipped in a row up to now, skipped in all), read back from the device."""
        _, _, streak, skipped = self._state_4.tolist()
        return int(streak), int(skipped)

    def state(self) -> list[float]:
        """For the checkpoint."""
        return self._state_4.tolist()

    def restore(self, state: list[float]) -> None:
        """As it was when the checkpoint was written."""
        self._state_4 = torch.tensor(state, dtype=torch.float64).to(self._state_4.device)

    def roll_back(self, state: list[float]) -> None:
        """The mean of a checkpoint; the skipped steps stay counted and a new row of them begins."""
        mean, accepted, _, _ = state
        self.restore([mean, accepted, 0, self.counts()[1]])


def step_unless(optimizer: torch.optim.Optimizer, bad: torch.Tensor) -> None:
    """optimizer.step(), undone by `bad`: on a GPU inside the optimizer's kernel, so that nobody waits for it."""
    if bad.device.type == "cpu":
        if not bad:
            optimizer.step()
        return
    # The protocol of torch's fused optimizers: a step whose found_inf is 1 changes nothing.
    optimizer.grad_scale, optimizer.found_inf = None, bad.float()  # type: ignore[attr-defined]
    optimizer.step()
