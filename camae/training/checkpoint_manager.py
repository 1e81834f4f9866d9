"""The state of a run between memory and disk: what is saved, when it is not, and what a run goes back to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from camae.errors import CamaeError
from camae.training import checkpoints
from camae.training.config import Recipe
from camae.training.distributed import World
from camae.training.ema import EMA
from camae.training.events import note
from camae.training.record import check_same_recipe, plain
from camae.training.stability import SpikeGuard

_MOST_ROLL_BACKS = 3


class Keeper:
    """Saves and restores one run. Every rank calls every method; rank 0 writes and decides.

    data: what the run trains on now (`record.described`).
    """

    def __init__(
        self,
        out: Path,
        recipe: Recipe,
        world: World,
        model: Any,
        optimizer: torch.optim.Optimizer,
        ema: EMA | None,
        spikes: SpikeGuard,
        data: list[dict[str, Any]],
    ):
        self.out, self.recipe, self.world, self.data = out, recipe, world, data
        self.model, self.optimizer, self.ema, self.spikes = model, optimizer, ema, spikes
        self._roll_backs, self._accepted = 0, 0.0

    def resume(self) -> int:
        """Restore the newest intact checkpoint, if there is one; returns the steps done.

        Other data than before are noted, since crops then come in a new order.
        """
        folder = self._newest()
        if folder is None:
            return 0
        state = checkpoints.read_state(folder)
        check_same_recipe(state, self.recipe, folder)
        self._take(folder)
        self.spikes.restore(state["spikes"])
        if state["data"] != self.data and self.world.main:
            note(
                self.out,
                f"{folder} was trained on other data than now: crops come in a new order from here",
                state["step"],
            )
        return int(state["step"])

    def save(self, step: int) -> None:
        """Write a checkpoint; when the disk refuses, say so and go on with the last good one."""
        state = {
            "recipe": plain(self.recipe.to_dict()),
            "crops": step * self.recipe.batch_size,
            "channels": list(self.model.config.channels),
            "data": self.data,
            "spikes": self.spikes.state(),
            "world_size": self.world.size,
        }
        average = self.ema.tensors() if self.ema is not None else None
        try:
            checkpoints.save_checkpoint(
                self.out,
                step,
                self.model,
                self.optimizer,
                state,
                self.recipe.keep_checkpoints,
                average,
                world=self.world,
            )
            if state["spikes"][1] > self._accepted:  # a step was taken since the last roll-back
                self._roll_backs = 0
        except checkpoints.NotWrittenError as error:
            if self.world.main:
                note(self.out, str(error), step)

    def roll_back(self, step: int) -> int:
        """Weights and optimizer of the last checkpoint; the run goes on with the data of `step`.

        Returns the step of that checkpoint. Raises CamaeError without one, or when going back does not help.
        """
        folder = self._newest()
        self._roll_backs += 1
        if folder is None or self._roll_backs > _MOST_ROLL_BACKS:
            why = "there is no checkpoint to go back to" if folder is None else "going back did not help"
            raise CamaeError(
                f"the loss or its gradient was not finite, or too high, for {self.recipe.rollback_after} steps in a "
                f"row up to step {step}, and {why}: lower lr, raise warmup, or look at the data"
            )
        state = checkpoints.read_state(folder)
        self._take(folder)
        self.spikes.roll_back(state["spikes"])
        self._accepted = state["spikes"][1]
        if self.world.main:
            note(
                self.out,
                f"{self.recipe.rollback_after} steps in a row were skipped up to step {step}: back to the weights of "
                f"{folder.name}, with the data that come next",
                step,
            )
        return int(state["step"])

    def _newest(self) -> Path | None:
        """The newest intact checkpoint, as rank 0 sees it."""
        folder, complaints = checkpoints.newest_intact(self.out) if self.world.main else (None, [])
        for sentence in complaints:
            note(self.out, sentence, 0)
        step = self.world.from_main(-1 if folder is None else checkpoints.step_of(folder))
        return None if step < 0 else checkpoints.checkpoint_folder(self.out, step)

    def _take(self, folder: Path) -> None:
        checkpoints.restore_checkpoint(folder, self.model, self.optimizer)
        if self.ema is not None:
            self.ema.restore(checkpoints.read_average(folder))
