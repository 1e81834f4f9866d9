"""Exceptions for users: one sentence that says what was wrong, where, and what to do."""

from __future__ import annotations


def one_line(text: str) -> str:
    """Text with line breaks and other control characters escaped, as names from files may hold them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class CamaeError(ValueError):
    """Wrong input, or a request that cannot be met. The message is one sentence; the shell prints it alone."""

    def __init__(self, *arguments: object):
        super().__init__(*(one_line(a) if isinstance(a, str) else a for a in arguments))


class MissingFileError(CamaeError, FileNotFoundError):
    """A file or folder that was named does not exist."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class MissingBackendError(CamaeError, ImportError):
    """The package or device of a requested back-end is missing. No other one takes its place silently."""


class OutputError(CamaeError, OSError):
    """An output cannot be written: full disk, no permission, a file in the way. errno: the system's number."""

    def __init__(self, sentence: str, number: int | None = None):
        super().__init__(sentence)
        self.errno = number

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> tuple[type[OutputError], tuple[str, int | None]]:
        return type(self), (str(self), self.errno)
