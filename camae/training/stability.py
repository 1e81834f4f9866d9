"""Loss-spike guard: skips non-finite or outlier steps without a host sync."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_SPAN = 20  # accepted steps the running mean looks back on, and needs before it is trusted


class SpikeGuard:
    """Skips non-finite or outlier steps without a host sync.

    factor: a loss above this many times the mean of about the last 20 accepted ones is an outlier; 0: only losses
        and gradients that are not finite are skipped.
    """

    def __init__(self, factor: float, device: torch.device):
        self.factor = factor
        # mean of accepted losses, accepted steps, skipped steps in a row, skipped steps in all
        self._state_4 = torch.zeros(4, dtype=torch.float64, device=device)

    def judge(self, loss: torch.Tensor, grad_norm: torch.Tensor) -> torch.Tensor:
        """() bool on the device, whether to skip this step; updates the running mean and the counts."""
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
        """State for a checkpoint: mean of accepted losses, accepted, skipped in a row, skipped in all."""
        return self._state_4.tolist()

    def restore(self, state: Sequence[float]) -> None:
        """Continue from `state()`."""
        self._state_4 = torch.tensor(state, dtype=torch.float64).to(self._state_4.device)

    def roll_back(self, state: Sequence[float]) -> None:
        """Take the mean of a checkpoint; the skipped steps stay counted and a new row of them begins."""
        mean, accepted, _, _ = state
        self.restore([mean, accepted, 0, self.counts()[1]])


def step_unless(optimizer: torch.optim.Optimizer, skip: torch.Tensor) -> None:
    """Take the optimizer's step unless `skip` (() bool): on a GPU inside its kernel, without a host sync."""
    if skip.device.type == "cpu":
        if not skip:
            optimizer.step()
        return
    # The protocol of torch's fused optimizers: a step whose found_inf is 1 changes nothing.
    optimizer.grad_scale, optimizer.found_inf = None, skip.float()  # type: ignore[attr-defined]
    optimizer.step()
