"""Console output of the commands. Text of users and files is printed as it is, never read as Rich markup."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from camae.progress import progress_bar

_noted: set[str] = set()


def say(text: object) -> None:
    """Print one line or several on stdout, unwrapped."""
    Console(soft_wrap=True).print(Text(str(text)))


def say_table(
    rows: Iterable[Iterable[object]], header: Iterable[object] | None, title: str | None = None
) -> None:
    """Print a table on stdout; header None for one without."""
    columns = [Column(Text(str(name))) for name in header or ()]
    table = Table(
        *columns,
        title=None if title is None else Text(title),
        title_justify="left",
        show_header=header is not None,
    )
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row))
    Console().print(table)


def say_error(error: Exception) -> None:
    """Print an error as one sentence on stderr."""
    _to_stderr("error:", "red", str(error))


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as one line on stderr, once: in place of `warnings.showwarning`."""
    if str(message) not in _noted:
        _noted.add(str(message))
        _to_stderr("note:", "yellow", str(message))


@contextmanager
def planes_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A live bar fed by progress(done, total)."""
    with progress_bar(transient=True) as bar:
        task = bar.add_task(title, total=None, status="")
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _to_stderr(label: str, color: str, text: str) -> None:
    Console(file=sys.stderr, soft_wrap=True).print(Text.assemble((label, color), " ", text))
