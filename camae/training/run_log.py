"""Run log: `log.jsonl`, `events.jsonl`, TensorBoard event files by request, and what the console shows."""

from __future__ import annotations

import contextlib
import json
import time
import warnings
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from camae.errors import MissingBackendError
from camae.files import open_lines, output_errors, read_json_lines, write_text
from camae.progress import PlainLines, is_live, time_left

LogRow = dict[str, float]


class RunLog:
    """Log of a run, `log.jsonl`: one row per logged step; with `tensorboard`, event files in `tensorboard/` too."""

    def __init__(self, path: Path, first_step: int, tensorboard: bool = False):
        self.path = path
        self._board = TensorBoard(path.parent / "tensorboard", first_step) if tensorboard else None
        self._drop_from(first_step)
        with output_errors(path):
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def _drop_from(self, step: int) -> None:
        """Rows at or after the step that training resumes from are written anew."""
        kept = [row for row in read_log(self.path) if row["step"] <= step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def write(self, row: LogRow) -> None:
        """Append one row, visible to readers at once. A disk that refuses it costs the row, not the run."""
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        except OSError as error:
            warnings.warn(
                f"{self.path}: a row of the log could not be written ({error.strerror})", stacklevel=2
            )
        if self._board is not None:
            try:
                self._board.write(row)
            except OSError as error:
                warnings.warn(
                    f"{self.path.parent}: TensorBoard's files could not be written ({error})", stacklevel=2
                )

    def close(self) -> None:
        """Close the files."""
        with contextlib.suppress(OSError):
            self._file.close()
        if self._board is not None:
            with contextlib.suppress(OSError):
                self._board.close()


def read_log(path: str | Path) -> list[LogRow]:
    """Rows of a run's log, oldest first; none where there is no file."""
    return read_json_lines(path)


def log_event(out: Path, sentence: str, step: int) -> None:
    """Warn, and append {"time", "step", "event"} to the run's `events.jsonl` (not on a disk that refuses)."""
    warnings.warn(sentence, stacklevel=2)
    row = {"time": round(time.time(), 3), "step": step, "event": sentence}
    try:
        out.mkdir(parents=True, exist_ok=True)
        with open_lines(out / "events.jsonl") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as error:
        warnings.warn(f"{out / 'events.jsonl'} could not be written ({error})", stacklevel=2)


class TensorBoard:
    """TensorBoard writer: every number of a log row as a scalar.

    Raises MissingBackendError without the package tensorboard.
    """

    def __init__(self, folder: Path, first_step: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingBackendError(
                "tensorboard=True needs the package tensorboard (pip install tensorboard); log.jsonl is written without"
            ) from None
        with output_errors(folder):
            self._writer = SummaryWriter(str(folder), purge_step=first_step + 1)

    def write(self, row: LogRow) -> None:
        """Write one row of the log."""
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(row["step"]))
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


# Column of the live table: where it comes from in a row of the log, and how it is written.
_COLUMNS = (
    ("step", "step", "{:,}"),
    ("loss", "loss", "{:.4f}"),
    ("val", "val_loss", "{:.4f}"),
    ("probe", "probe", "{:.3f}"),
    ("lr", "lr", "{:.1e}"),
    ("grad", "grad_norm", "{:.2f}"),
    ("crops/s", "crops_per_second", "{:,.1f}"),
    ("MFU", "mfu", "{:.1%}"),
    ("wait", "data_wait_share", "{:.0%}"),
    ("GB", "memory_gb", "{:.1f}"),
)
_ROWS = 8


class LiveTable:
    """Live table of the last rows of the log, with a progress bar and the time left, drawn in place.

    Where output is no console: plain lines, at the start, at validations and checkpoints, and every so many seconds.
    """

    def __init__(self, steps: int, first: int = 0, *, console: Console | None = None, disable: bool = False):
        console = console or Console()
        self.steps, self.first = steps, first
        self._bar = Progress(
            TextColumn("training"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn()
        )
        self._task = self._bar.add_task("training", total=steps, completed=first)
        self._rows: deque[LogRow] = deque(maxlen=_ROWS)
        self._seen: set[str] = set()
        live = not disable and is_live(console)
        self._live = Live(self, console=console, refresh_per_second=4) if live else None
        self._lines = None if disable or live else PlainLines(stream=console.file)

    def __enter__(self) -> LiveTable:
        if self._live is not None:
            self._live.start()
        self.note(f"training: step {self.first:,} of {self.steps:,}")
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def add(self, row: Mapping[str, float]) -> None:
        """Show a row of the log."""
        probe = row.get("probe_recall", row.get("probe_accuracy"))
        shown = dict(row) | ({} if probe is None else {"probe": probe})
        self._rows.append(shown)
        self._seen |= shown.keys()
        self._bar.update(self._task, completed=row["step"])
        if self._lines is not None and (
            "val_loss" in shown or "probe" in shown or row["step"] == self.steps or self._lines.due
        ):
            self._lines.say(self._line(int(row["step"])))

    def tick(self, step: int) -> None:
        """Say where the run stands after `step` steps, where plain lines are written and the next is due."""
        if self._lines is not None and self._lines.due:
            self._lines.say(self._line(step))

    def note(self, text: str) -> None:
        """Say something at once, where plain lines are written."""
        if self._lines is not None:
            self._lines.say(text)

    def _line(self, step: int) -> str:
        """Where the run stands: the last row of the log, and the time left."""
        row = self._rows[-1] if self._rows else {}
        parts = [f"step {step:,}/{self.steps:,}"]
        parts += [f"{name} {form.format(row[key])}" for name, key, form in _COLUMNS[1:] if key in row]
        assert self._lines is not None
        left = time_left(self._lines.seconds, step - self.first, self.steps - step)
        return ", ".join([*parts, *([left] if left else [])])

    def __rich__(self) -> Group:
        """Only columns that some row has had; a validation or probe stays on its own line."""
        columns = [c for c in _COLUMNS if c[1] in self._seen]
        table = Table(*(Column(c[0], justify="right") for c in columns), box=None, pad_edge=False)
        for row in self._rows:
            table.add_row(*(form.format(row[key]) if key in row else "" for _, key, form in columns))
        return Group(table, self._bar)
