"""What a run says while it goes: JSON lines always, a live progress line for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from camae.files import read_json_lines, write_text


class RunLog:
    """`log.jsonl` of a run: one row per logged step."""

    def __init__(self, path: Path, first_step: int):
        self.path = path
        self._drop_from(first_step)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def _drop_from(self, step: int) -> None:
        """Rows at or after the step that training resumes from are written anew."""
        kept = [row for row in read_log(self.path) if row["step"] <= step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def write(self, row: dict[str, Any]) -> None:
        """Append one row, visible to readers at once."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a run's log."""
    return read_json_lines(path)


def progress_bar(console: Console | None = None, disable: bool = False) -> Progress:
    """The live line: bar, steps, time left, loss and crops/s."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
        console=console,
        disable=disable,
    )
