"""Progress of long work: a live bar at a console, plain lines at a steady pace elsewhere (SLURM, nohup, CI)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from importlib.util import find_spec
from typing import IO, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

VARIABLE = "CAMAE_PROGRESS_SECONDS"
_SECONDS = 30.0


def is_live(console: Console) -> bool:
    """Whether a console can redraw what it shows: a terminal, or a notebook with ipywidgets."""
    if console.is_jupyter:
        return find_spec("ipywidgets") is not None
    return console.is_terminal


class PlainLines:
    """Plain progress lines on stdout: one every so many seconds, flushed at once.

    every: seconds; None for the environment variable CAMAE_PROGRESS_SECONDS, else 30. stream: None for stdout.
    """

    def __init__(
        self,
        every: float | None = None,
        stream: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.every, self._stream, self._clock = (
            seconds_between_lines() if every is None else every,
            stream,
            clock,
        )
        self.start = self._last = clock()
        self.said = False

    @property
    def due(self) -> bool:
        """Whether the next line's time has come."""
        return self._clock() - self._last >= self.every

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return self._clock() - self.start

    def say(self, text: str) -> None:
        """Write a line. A stream that refuses it (full disk, closed pipe) costs the line, not the work."""
        self._last, self.said = self._clock(), True
        with suppress(OSError, ValueError):
            print(text, file=self._stream or sys.stdout, flush=True)


def seconds_between_lines() -> float:
    """Seconds between plain lines, by the environment; 30 where it says nothing usable."""
    with suppress(ValueError):
        seconds = float(os.environ.get(VARIABLE, ""))
        if seconds > 0:
            return seconds
    return _SECONDS


def time_left(seconds: float, done: float, rest: float) -> str:
    """Text of the time that the rest takes at the pace so far: "0:02:10 left"; "" where nothing is known."""
    if done <= 0 or rest <= 0:
        return ""
    left = seconds * rest / done
    return f"{timedelta(seconds=round(left))} left" if left < 1e9 else ""


class _PlainProgress(Progress):
    """Progress bar's stand-in where nothing can be redrawn: the same methods, plain lines."""

    def __init__(self, *columns: ProgressColumn, lines: PlainLines):
        super().__init__(*columns, disable=True)
        self._lines = lines
        self._first: dict[TaskID, float] = {}

    def update(
        self,
        task_id: TaskID,
        *,
        total: float | None = None,
        completed: float | None = None,
        advance: float | None = None,
        description: str | None = None,
        visible: bool | None = None,
        refresh: bool = False,
        **fields: Any,
    ) -> None:
        """Change a task, and tell where it stands when the next line is due."""
        self._first.setdefault(task_id, self._tasks[task_id].completed)
        super().update(
            task_id,
            total=total,
            completed=completed,
            advance=advance,
            description=description,
            visible=visible,
            refresh=refresh,
            **fields,
        )
        if self._lines.due:
            self._tell(task_id)

    def stop(self) -> None:
        """End; the last state is told where lines were told before."""
        super().stop()
        if self._lines.said:
            for task_id in list(self._first):
                self._tell(task_id)

    def _tell(self, task_id: TaskID) -> None:
        task = self._tasks[task_id]
        parts = [f"{task.description}: {task.completed:,.0f}"]
        if task.total:
            parts[0] += f"/{task.total:,.0f} ({task.completed / task.total:.0%})"
            done = task.completed - self._first.get(task_id, 0)
            parts.append(time_left(self._lines.seconds, done, task.total - task.completed))
        parts.append(str(task.fields.get("status", "")))
        self._lines.say(", ".join(part for part in parts if part))


def progress_bar(console: Console | None = None, disable: bool = False, transient: bool = False) -> Progress:
    """Bar with steps done, time left, and what the task's field `status` says; plain lines where output is no console.

    transient: the bar vanishes when the work is done.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}", markup=False),
    )
    console = console or Console()
    if not disable and not is_live(console):
        return _PlainProgress(*columns, lines=PlainLines())
    return Progress(*columns, console=console, disable=disable, transient=transient)


@contextmanager
def count_bar(title: str, console: Console | None = None) -> Iterator[Callable[[int, int], None]]:
    """A bar fed by progress(done, total), which vanishes at the end; plain lines where output is no console."""
    with progress_bar(console, transient=True) as bar:
        task = bar.add_task(title, total=None, status="")
        yield lambda done, total: bar.update(task, completed=done, total=total)


def plain_printer(console: Console | None = None) -> Callable[[str], None]:
    """A function that prints a line as it is: no markup, no wrapping."""
    chosen = console or Console()

    def say(text: str) -> None:
        chosen.print(text, markup=False, highlight=False, soft_wrap=True)

    return say
