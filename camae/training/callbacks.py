"""Callbacks of the training loop: the probe of the embedding, and the pictures of reconstructions and losses."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Protocol

from camae.dataloader.plane_batch import ValueRange
from camae.errors import CamaeError
from camae.model.interface import Model, Reconstructs
from camae.training.evaluation import CenterCrops, Probe, picture_rows, reconstruct_rows
from camae.training.run_log import LogRow, read_log


class Callback(Protocol):
    """Callback of the training loop. Methods do nothing unless overridden.

    `is_due` is called on every rank and must answer the same on all; the others are called on rank 0 alone, with the
    model in training mode, which must be so again when they return.
    """

    def is_due(self, step: int) -> bool:
        """Whether the log needs a row after `step` steps."""
        return False

    def on_log(self, step: int, model: Model) -> LogRow:
        """Values to add to the row of the log after `step` steps."""
        return {}

    def on_step_end(self, step: int, model: Model) -> None:
        """Called after `step` steps, once the log and a checkpoint are written."""
        return

    def on_train_end(self, model: Model) -> None:
        """Called with the exported model, in eval mode, once it is written."""
        return


class ProbeCallback(Callback):
    """Probe of the embedding every so many of `steps` steps and at the end; see `Probe`."""

    def __init__(self, probe: Probe, steps: int, value_range: ValueRange | None, reader: str | None):
        self.probe, self.steps, self.value_range, self.reader = probe, steps, value_range, reader

    def is_due(self, step: int) -> bool:
        """Whether the probe is evaluated after `step` steps."""
        return is_due(step, self.probe.every, self.steps)

    def on_log(self, step: int, model: Model) -> LogRow:
        """`probe_accuracy` and `probe_chance`, or `probe_recall`."""
        return self.probe.evaluate(model, self.value_range, self.reader) if self.is_due(step) else {}


class PictureCallback(Callback):
    """Reconstructions (paper, Figure 2) and loss curves (Figure 3) every so many steps and at the end.

    out: run folder, for `reconstructions.npz`, `reconstructions.png` and `loss.png`. every: 0 for the end alone.
    mask_ratio: None for the model's.
    """

    def __init__(self, out: Path, crops: CenterCrops, every: int, mask_ratio: float | None):
        self.out, self.crops, self.every, self.mask_ratio = out, crops, every, mask_ratio

    def on_step_end(self, step: int, model: Model) -> None:
        """Draw the model as it is, every `every` steps."""
        if self.every and step % self.every == 0:
            self.draw(model)

    def on_train_end(self, model: Model) -> None:
        """Draw the exported model."""
        self.draw(model)

    def draw(self, model: Model) -> None:
        """Write the files, for a model that reconstructs; a disk or image that refuses costs them, not the run."""
        try:
            self._draw(model)
        except (OSError, CamaeError) as error:
            warnings.warn(f"{self.out}: the pictures could not be drawn ({error})", stacklevel=2)

    def _draw(self, model: Model) -> None:
        if not isinstance(model, Reconstructs):
            return
        from camae.reporting.figures import loss_curves, reconstruction_grid, save_png

        ratio = model.config.mask_ratio if self.mask_ratio is None else self.mask_ratio
        batch, labels = self.crops.batch(picture_rows(self.crops.manifest), model.config.crop)
        r = reconstruct_rows(model, batch.to(model.device), labels, mask_ratio=ratio)
        r.save(self.out / "reconstructions.npz")
        grid = reconstruction_grid(r.masked, r.reconstruction, r.original, r.labels, r.channels)
        save_png(grid, self.out / "reconstructions.png")
        save_png(loss_curves({self.out.name: read_log(self.out / "log.jsonl")}), self.out / "loss.png")


def is_due(step: int, every: int, steps: int) -> bool:
    """Whether something happens after `step` of `steps`: every so many steps and at the end, 0 for never."""
    return every > 0 and (step % every == 0 or step == steps)
