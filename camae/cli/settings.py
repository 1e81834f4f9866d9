"""Parser of `--set name=value` settings."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
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
        try:
            value = tomllib.loads(f"x = {text}")["x"]
        except (
            ValueError,
            RecursionError,
        ):  # no TOML: a plain word; or a number or list that no setting can be
            value = text
        *parents, last = key.split(".")
        table = values
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise CamaeError(f"{option} {pair}: {parent} has a value already, so it cannot have parts")
        table[last] = value
    return values


def parse_names(pairs: Iterable[str] | None, option: str) -> dict[str, str]:
    """`name=name` strings to a mapping. Raises CamaeError for a string without a name or "="."""
    names: dict[str, str] = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise CamaeError(f"{option} {pair}: write it as name=value")
        names[key] = value
    return names
