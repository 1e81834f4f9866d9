"""Checkpoint manager: when a run is saved, resumed, and rolled back after skipped steps."""

from __future__ import annotations

from pathlib import Path

import torch

from camae.errors import CamaeError
from camae.model.interface import Model
from camae.training import checkpoint_files as files
from camae.training.config import TrainConfig
from camae.training.distributed import World
from camae.training.optimization import EMA
from camae.training.run_log import log_event
from camae.training.run_record import (
    CheckpointState,
    DataSetRecord,
    check_same_config,
    config_record,
    is_same_data,
)
from camae.training.stability import SpikeGuard

_MOST_ROLL_BACKS = 3


class CheckpointManager:
    """Checkpoint manager of one run. Every rank calls every method; rank 0 writes and decides.

    data: what the run trains on now (`run_record.data_record`).
    """

    def __init__(
        self,
        out: Path,
        config: TrainConfig,
        world: World,
        model: Model,
        optimizer: torch.optim.Optimizer,
        ema: EMA | None,
        spikes: SpikeGuard,
        data: list[DataSetRecord],
    ):
        self.out, self.config, self.world, self.data = out, config, world, data
        self.model, self.optimizer, self.ema, self.spikes = model, optimizer, ema, spikes
        self.token_budget: int | None = config.token_budget  # of the passes, kept with every checkpoint
        self.precision: str | None = None  # where it was measured
        self._roll_backs, self._accepted = 0, 0.0

    def resume(self) -> int:
        """Restore the newest intact checkpoint, if there is one; returns the steps done.

        Logs an event where the data differ from before, since crops then come in a new order. Raises CamaeError for
        other settings, or where no checkpoint is intact.
        """
        folder = self._newest()
        if folder is None:
            return 0
        state = files.read_state(folder)
        check_same_config(state, self.config, folder)
        self._restore(folder)
        self.spikes.restore(state["spikes"])
        self._keep_passes(state)
        self.precision = state.get("precision")
        if not is_same_data(state["data"], self.data):
            self._log(
                f"{folder} was trained on other sites than now, or on these in another order: crops may come in "
                "a new order from here",
                state["step"],
            )
        return state["step"]

    def _keep_passes(self, state: CheckpointState) -> None:
        """Take the passes of the run so far where nothing sets them, so that it goes on exactly; never larger ones.

        A run that begins to be cut here goes on with other draws of stochastic depth.
        """
        chosen = self.config.token_budget is None and self.token_budget is not None
        before = state.get("token_budget")
        if chosen and before is not None:
            assert self.token_budget is not None
            self.token_budget = min(before, self.token_budget)
        elif before is not None and self._passes_are_free():
            self.token_budget = before

    def _passes_are_free(self) -> bool:
        c = self.config
        return c.token_budget is None and c.micro_batch is None and c.accumulate == 1

    def save(self, step: int) -> None:
        """Write a checkpoint; when the disk refuses, log an event and go on with the last good one."""
        state: CheckpointState = {
            "step": step,
            "recipe": config_record(self.config),
            "crops": step * self.config.batch_size,
            "channels": self.model.channels,
            "data": self.data,
            "spikes": self.spikes.state(),
            "world_size": self.world.size,
            "token_budget": self.token_budget,
            "precision": self.precision,
        }
        average = self.ema.state() if self.ema is not None else None
        keep = self.config.keep_checkpoints
        try:
            files.save_checkpoint(self.out, self.model, self.optimizer, state, keep, average, self.world)
            if state["spikes"][1] > self._accepted:  # a step was taken since the last roll-back
                self._roll_backs = 0
        except files.NotWrittenError as error:
            self._log(str(error), step)

    def roll_back(self, step: int) -> int:
        """Restore weights and optimizer of the last checkpoint; the run goes on with the data of `step`.

        Returns the step of that checkpoint. Raises CamaeError without one, or when going back does not help.
        """
        folder = self._newest()
        self._roll_backs += 1
        if folder is None or self._roll_backs > _MOST_ROLL_BACKS:
            why = "there is no checkpoint to go back to" if folder is None else "going back did not help"
            raise CamaeError(
                f"the loss or its gradient was not finite, or too high, for {self.config.rollback_after} steps in a "
                f"row up to step {step}, and {why}: lower lr, raise warmup, or look at the data"
            )
        state = files.read_state(folder)
        self._restore(folder)
        self.spikes.roll_back(state["spikes"])
        self._accepted = state["spikes"][1]
        self._log(
            f"{self.config.rollback_after} steps in a row were skipped up to step {step}: back to the weights of "
            f"{folder.name}, with the data that come next",
            step,
        )
        return state["step"]

    def _newest(self) -> Path | None:
        """The newest intact checkpoint, as rank 0 sees it."""
        folder, complaints = files.newest_intact(self.out) if self.world.is_rank0 else (None, [])
        for sentence in complaints:
            self._log(sentence, 0)
        step = self.world.broadcast_from_rank0(-1 if folder is None else files.step_of(folder))
        return None if step < 0 else files.checkpoint_folder(self.out, step)

    def _restore(self, folder: Path) -> None:
        files.restore_checkpoint(folder, self.model, self.optimizer)
        if self.ema is not None:
            self.ema.restore(files.read_average(folder))

    def _log(self, sentence: str, step: int) -> None:
        if self.world.is_rank0:
            log_event(self.out, sentence, step)
