"""Writes command-line.md and settings.md from the code itself: `python docs/generate_pages.py`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import typer

from camae.cli import app
from camae.embedding.config import EmbedConfig
from camae.training.config import TrainConfig

HERE = Path(__file__).parent
COMMANDS = """\
# Command line

Errors are one sentence on stderr and exit code 2. `camae COMMAND --help` says the same as this page, which
`python docs/generate_pages.py` writes.
"""
SETTINGS = """\
# Settings

`python docs/generate_pages.py` writes this page.

## Training

Fields of `camae.training.config.TrainConfig`: arguments of `camae.train`, `--set name=value` of `camae train`, lines of
a TOML file.

"""
EMBEDDING = """
## Embedding

Fields of `camae.embedding.EmbedConfig`: arguments of `camae.embed_screen`, options of `camae embed` (with `-` for `_`).

"""
TABLE = "| setting | type | default | |\n|---|---|---|---|\n"


def commands(command: Any = None, name: str = "camae") -> Iterator[tuple[str, Any]]:
    """Every command under its full name, in the order of `camae --help`."""
    command = command or typer.main.get_command(app)
    if hasattr(command, "commands"):
        for word, inner in command.commands.items():
            yield from commands(inner, f"{name} {word}")
    else:
        yield name, command


def options_of(command: Any) -> list[str]:
    """Spellings of all its options."""
    options = [p for p in command.params if p.param_type_name == "option"]
    return [spelling for p in options for spelling in (*p.opts, *p.secondary_opts)]


def pages() -> dict[str, str]:
    """File name -> text of every generated page."""
    return {
        "command-line.md": COMMANDS + "".join(_section(name, command) for name, command in commands()),
        "settings.md": SETTINGS + _table(TrainConfig()) + EMBEDDING + _table(EmbedConfig()),
    }


def _table(config: Any) -> str:
    rows = [
        f"| `{f.name}` | `{_text(str(f.type))}` | {_shown(getattr(config, f.name))} | {_text(f.metadata['help'])} |"
        for f in fields(config)
    ]
    return TABLE + "\n".join(rows) + "\n"


def _section(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    usage = " ".join([name, *(_usage(a) for a in arguments), "[OPTIONS]"])
    lines = ["", f"## {name}", "", str(command.help).strip(), "", "```text", usage, "```", ""]
    lines += ["| | | default |", "|---|---|---|"]
    for argument in arguments:
        lines.append(f"| `{argument.name}` | {_text(getattr(argument, 'help', ''))} | {_needed(argument)} |")
    for option in command.params:
        if option.param_type_name == "option":
            names = ", ".join(f"`{o}`" for o in (*option.opts, *option.secondary_opts))
            lines.append(f"| {names} | {_text(option.help)} | {_needed(option)} |")
    return "\n".join(lines) + "\n"


def _usage(argument: Any) -> str:
    shown = str(argument.name).upper() + ("..." if argument.nargs == -1 else "")
    return shown if argument.required else f"[{shown}]"


def _text(help: str | None) -> str:
    return " ".join((help or "").replace("|", "\\|").split())


def _needed(parameter: Any) -> str:
    return "needed" if parameter.required else _shown(parameter.default)


def _shown(default: object) -> str:
    if callable(default) or default is None or default is False or default in ("", (), [], {}):
        return ""
    return "on" if default is True else f"`{default}`"


if __name__ == "__main__":
    for name, text in pages().items():
        (HERE / name).write_text(text, encoding="utf-8")
