"""Command line `camae`: thin commands over the public functions. Errors are one sentence and an exit code."""

from __future__ import annotations

from camae.cli.application import app, main

__all__ = ["app", "main"]

if __name__ == "__main__":
    main()
