"""The errors a user sees: one sentence that says what was wrong, where, and what to do."""

from __future__ import annotations


class CamaeError(ValueError):
    """Bad input or a bad request. The message is one sentence for a person; the shell prints it alone."""


class MissingFileError(CamaeError, FileNotFoundError):
    """A file or folder that was named does not exist."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class MissingBackendError(CamaeError, ImportError):
    """A back-end was asked for whose package or device is not there. Nothing is substituted silently."""
