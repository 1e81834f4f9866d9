"""Progress bar of long work at the console."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress_bar(console: Console | None = None, disable: bool = False, transient: bool = False) -> Progress:
    """Bar with steps done, time left, and what the task's field `status` says.

    transient: the bar vanishes when the work is done.
    """
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}", markup=False),
        console=console,
        disable=disable,
        transient=transient,
    )
