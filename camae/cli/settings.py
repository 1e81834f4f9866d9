"""Parser of `--set name=value` settings."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from camae.errors import CamaeError


def parse_settings(pairs: Iterable[str] | None, option: str = "--set") -> dict[str, Any]:
    """`a.b=value` strings to nested settings; values are TOML, and plain words are strings.

    option: its name, for the error. Raises CamaeError for a string without a name or "=".
    """
    values: dict[str, Any] = {}
    for pair in pairs or ():
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise CamaeError(f"{option} {pair}: write it as name=value")
        value = _value(text)
        *parents, last = key.split(".")
        table = values
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise CamaeError(f"{option} {pair}: {parent} has a value already, so it cannot have parts")
        table[last] = value
    return values


def _value(text: str) -> object:
    """The TOML value of a text, also of `0,1` without brackets; a plain word, and what no setting can be, is text."""
    for form in (text, f"[{text}]") if "," in text else (text,):
        with suppress(ValueError, RecursionError):
            return tomllib.loads(f"x = {form}")["x"]
    return text


def parse_names(pairs: Iterable[str] | None, option: str) -> dict[str, str]:
    """`name=name` strings to a mapping. Raises CamaeError for a string without a name or "="."""
    names: dict[str, str] = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise CamaeError(f"{option} {pair}: write it as name=value")
        names[key] = value
    return names
