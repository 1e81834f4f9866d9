"""Command-line application: all commands in the order of the help, and the entry point."""

from __future__ import annotations

import errno
import os
import signal
import sys
import warnings
from collections.abc import Sequence

import typer

from camae.cli import (
    console,
    data,
    doctor,
    embed,
    evaluate,
    explore,
    export,
    maps,
    models,
    patch_map,
    reproduction,
    runs,
    train,
)
from camae.cli.options import ManyCommand, PairCommand
from camae.errors import CamaeError
from camae.files import output_error
from camae.processors import limit_threads

# Without markup: help texts and usage errors hold names of users and files.
app = typer.Typer(
    help="Channel-agnostic masked autoencoders for high-content microscopy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_data = typer.Typer(help="Look at a screen before using it.", no_args_is_help=True, rich_markup_mode=None)
_evaluate = typer.Typer(
    help="Evaluate a model on a labeled screen.", no_args_is_help=True, rich_markup_mode=None
)
_runs = typer.Typer(help="Look at training runs.", no_args_is_help=True, rich_markup_mode=None)

app.command()(reproduction.demo)
app.command()(train.train)
app.command(cls=PairCommand)(embed.embed)
app.command()(export.export)
app.command("map", cls=ManyCommand)(maps.map_screen)
app.command("patch-map", cls=PairCommand)(patch_map.patch_map)
app.command()(explore.explore)
app.command()(runs.report)
app.command()(reproduction.benchmark)
app.command(cls=PairCommand)(reproduction.paper)
app.command()(data.pack)
app.command()(runs.convert)
app.command()(models.models)
app.command()(doctor.doctor)
app.add_typer(_data, name="data")
_data.command("check")(data.check)
_data.command("plan")(data.plan)
app.add_typer(_evaluate, name="evaluate")
_evaluate.command(cls=PairCommand)(evaluate.layers)
_evaluate.command(cls=PairCommand)(evaluate.channels)
app.add_typer(_runs, name="runs")
_runs.command("compare")(runs.compare)

_MAY_BE_EMPTY = ("--plate", "--title")  # no plates, no title
_OF_OUTPUTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def main() -> None:
    """Entry point: errors of users and of disks become one sentence on stderr and exit code 2."""
    warnings.showwarning = console.show_warning
    limit_threads(os.environ)
    try:
        _refuse_empty(sys.argv[1:])
        app()
    except KeyboardInterrupt:
        console.say_error(CamaeError("stopped; every file under its own name is whole"))
        sys.exit(128 + signal.SIGINT)
    except CamaeError as error:
        console.say_error(error)
        sys.exit(2)
    except OSError as error:
        if error.errno is None:
            raise
        console.say_error(_sentence(error))
        sys.exit(2)


def _refuse_empty(words: Sequence[str]) -> None:
    """Raise CamaeError for an empty argument: an unset variable of the shell would name the folder one is in."""
    for before, word in zip(("", *words), words, strict=False):
        option, equals, value = word.partition("=")
        empty = option if word.startswith("--") and equals and not value else before if not word else None
        if empty is not None and empty not in _MAY_BE_EMPTY:
            where = f"the value of {empty}" if empty.startswith("-") else "an argument"
            raise CamaeError(f"{where} is empty; is a variable of the shell unset?")


def _sentence(error: OSError) -> Exception:
    """An error of the system as one sentence; only some of them are sure to be of an output."""
    where = error.filename or "an output"
    if error.errno in _OF_OUTPUTS:
        return output_error(where, error)
    reason = (error.strerror or str(error)).lower()
    return CamaeError(f"{where} cannot be read or written: {reason}; check the path and its permissions")
