"""Command-line options made from the fields of a configuration: same names, defaults and texts as in Python."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Annotated, get_args, get_type_hints

import typer
from typer.core import TyperCommand

from camae.embedding.config import ReadOptions

Data = Annotated[str, typer.Argument(help="manifest (CSV, Parquet) or image folder")]
# Other names that an option goes by.
_ALIASES = {"tiles": ("--tile",)}


def with_options(
    config: type[ReadOptions], **defaults: object
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator: gives a command that takes `**options` one option for every field of `config`.

    defaults: those that differ from the field's. No configuration is made, because its checks load torch.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        types = get_type_hints(config)
        own = [
            p
            for p in inspect.signature(command, eval_str=True).parameters.values()
            if p.kind != p.VAR_KEYWORD
        ]
        reading = {f.name for f in fields(ReadOptions)}  # last in the help
        ordered = sorted(fields(config), key=lambda f: f.name in reading)
        made = [_parameter(f, types[f.name], defaults.get(f.name, f.default)) for f in ordered]

        @functools.wraps(command)
        def run(**given: object) -> None:
            command(**given)

        setattr(run, "__signature__", inspect.Signature([*own, *made]))  # noqa: B010 - what typer reads
        run.__annotations__ = {p.name: p.annotation for p in (*own, *made)}
        return run

    return decorate


class PairCommand(TyperCommand):
    """Command whose options of two numbers may be written `0 1` or `0,1`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        pairs = {name for p in self.params if p.nargs == 2 for name in p.opts}
        plain: list[str] = []
        for word in args:
            name, equals, value = word.partition("=")
            if equals and name in pairs:
                plain += [name, *value.split(",")]
            elif plain and plain[-1] in pairs:
                plain += word.split(",")
            else:
                plain.append(word)
        return super().parse_args(ctx, plain)


def _parameter(field: Field[object], kind: object, default: object) -> inspect.Parameter:
    """The command's parameter for a field: flags for bool, a repeated option for several numbers."""
    flag = "--" + field.name.replace("_", "-")
    names = [flag, *_ALIASES.get(field.name, ())] if kind is bool or field.name in _ALIASES else []
    if tuple[int, ...] in get_args(kind):
        kind = list[int] | None
    option = typer.Option(*names, help=field.metadata["help"], show_default=default not in (None, False))
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )
