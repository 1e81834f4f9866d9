"""Console output of the commands. Text of users and files is printed as it is, never read as Rich markup."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from camae.omissions import Omissions

_noted: set[str] = set()


def say(text: object) -> None:
    """Print one line or several on stdout, unwrapped."""
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True)
    console.print(Text(_printable(str(text), console.encoding)))


def say_table(
    rows: Iterable[Iterable[object]], header: Iterable[object] | None, title: str | None = None
) -> None:
    """Print a table on stdout; header None for one without."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    console = Console()

    def cell(value: object) -> Text:
        return Text(_printable(str(value), console.encoding))

    table = Table(
        *(Column(cell(name)) for name in header or ()),
        title=None if title is None else cell(title),
        title_justify="left",
        show_header=header is not None,
    )
    for row in rows:
        table.add_row(*map(cell, row))
    console.print(table)


def say_left_out(left_out: Omissions, notes: Iterable[str] = ()) -> None:
    """Print what a command joined, a line each, and what it left out, a line for each kind of omission."""
    for line in (*notes, *left_out.lines()):
        say(line)


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


def _to_stderr(label: str, color: str, text: str) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stderr, soft_wrap=True)
    line = " ".join(_printable(text, console.encoding).splitlines())
    console.print(Text.assemble((label, color), " ", line))


def _printable(text: str, encoding: str) -> str:
    """Text that a terminal of this encoding shows and does not obey: control characters are escaped."""
    plain = "".join(
        c if (c >= " " and not "\x7f" <= c < "\xa0") or c in "\n\t" else ascii(c)[1:-1] for c in text
    )
    return plain.encode(encoding, "backslashreplace").decode(encoding)
