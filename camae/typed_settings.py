"""Typed settings: dataclass fields with a declared type, range and help text, and their one check."""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, Union, get_args, get_origin, get_type_hints

from camae.errors import CamaeError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")

_MOST_TEXT = 100_000  # characters of a text setting
_SHOWN = 60  # characters of a value in a message
_UNWRITABLE = frozenset(map(chr, (0x7F, *range(0xD800, 0xE000))))  # DEL and lone surrogates


@dataclass(frozen=True)
class Limits:
    """Limits of a setting. They hold for every number or text of a tuple; None stays allowed where the type has it.

    low, high: smallest and largest value. above, below: bounds that are no values themselves. choices: all texts
    there are. most: items of a tuple or table.
    """

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] | None = None
    most: int | None = None

    def allow(self, value: object) -> bool:
        """Whether a value of the declared type is within the limits."""
        if isinstance(value, tuple):
            return all(map(self.allow, value))
        if isinstance(value, str):
            return self.choices is None or value in self.choices
        if value is None or isinstance(value, bool) or not isinstance(value, (int, float)):
            return True
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """What is allowed, as a clause: "at least 0 and below 1", "'lion' or 'adamw'"."""
        if self.choices is not None:
            *others, last = map(repr, self.choices)
            return f"{', '.join(others)} or {last}" if others else last
        bounds = {"at least": self.low, "above": self.above, "at most": self.high, "below": self.below}
        parts = [f"{word} {_number(bound)}" for word, bound in bounds.items() if bound is not None]
        return " and ".join(parts)


def option(
    default: T,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Sequence[str] | None = None,
    most: int | None = None,
) -> T:
    """A dataclass field with a default, the text that the shell and the docs show, and its `Limits`."""
    limits = Limits(low, high, above, below, None if choices is None else tuple(choices), most)
    return field(default=default, metadata={"help": help, "limits": limits})


def limited(
    default: T,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Sequence[str] | None = None,
    most: int | None = None,
) -> T:
    """A dataclass field as `option`, without a text of its own."""
    return option(default, "", low=low, high=high, above=above, below=below, choices=choices, most=most)


def limits_of(settings: DataclassInstance | type[DataclassInstance]) -> dict[str, Limits]:
    """Limits of every field, in order; without bounds where none are declared."""
    return {f.name: f.metadata.get("limits", Limits()) for f in fields(settings)}


@cache
def _declared(kind: type) -> dict[str, object]:
    """Type of every field of a dataclass, resolved once."""
    hints = get_type_hints(kind)
    return {f.name: hints[f.name] for f in fields(kind)}


def check_settings(settings: DataclassInstance, prefix: str = "") -> None:
    """Check every field of a dataclass against its declared type and limits.

    prefix: of the names in the message, e.g. "decoder.". Numbers must be finite, a bool is no number, an int may
    stand for a float. Raises CamaeError that names the first field that does not fit, its value and what is allowed.
    """
    limits = limits_of(settings)
    for name, kind in _declared(type(settings)).items():
        value, most = getattr(settings, name), limits[name].most
        if most is not None and isinstance(value, (tuple, dict)) and len(value) > most:
            raise CamaeError(f"{prefix}{name} has {len(value):,} items, and may have at most {most:,}")
        if not _is_a(value, kind):
            declared = getattr(kind, "__name__", str(kind)) if get_origin(kind) is None else str(kind)
            hint = '; give a list, such as ["a", "b"]' if declared.startswith("tuple[str") else ""
            raise CamaeError(f"{prefix}{name} is {_shown(value)}, which is not of type {declared}{hint}")
        if not _is_plain(value):
            raise CamaeError(
                f"{prefix}{name} is {_shown(value)}; a number must be finite, a text without control characters"
            )
        if not limits[name].allow(value):
            verb = "which is not" if limits[name].choices is not None else "and must be"
            raise CamaeError(f"{prefix}{name} is {_shown(value)}, {verb} {limits[name]}")


def from_settings(build: Callable[..., T], settings: Mapping[str, object], complaint: str) -> T:
    """A dataclass from named values; lists become tuples, paths text.

    complaint: how the message begins. Raises CamaeError for a name that is not a field.
    """
    known = inspect.signature(build).parameters
    if unknown := settings.keys() - known:
        names = ", ".join(sorted(map(str, unknown)))
        raise CamaeError(f"{complaint} {names}; known are {', '.join(sorted(known))}")
    return build(**{name: frozen(value) for name, value in settings.items()})


def frozen(value: object) -> object:
    """Lists as tuples, paths as text, at any depth of lists."""
    if isinstance(value, (list, tuple)):
        return tuple(frozen(v) for v in value)
    return str(value) if isinstance(value, Path) else value


def _is_a(value: object, kind: object) -> bool:
    """Whether a value is of a declared type: a class, tuple, dict or union."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_is_a(value, part) for part in parts)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return len(kinds) == len(value) and all(map(_is_a, value, kinds))
    if origin is dict:
        key, item = parts
        return isinstance(value, dict) and all(_is_a(k, key) and _is_a(v, item) for k, v in value.items())
    expected = origin or kind
    if not isinstance(expected, type):
        raise TypeError(f"a setting cannot be declared as {kind}")
    if isinstance(value, bool) and expected in (int, float):
        return False
    return isinstance(value, (int, float) if expected is float else expected)


def _is_plain(value: object) -> bool:
    """Whether all numbers of a value are finite and of 64 bits, and all its texts can be written to a file."""
    if isinstance(value, str):
        return len(value) <= _MOST_TEXT and not any(c < " " or c in _UNWRITABLE for c in value)
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return abs(value) < 2**63
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(_is_plain(k) and _is_plain(v) for k, v in value.items())
    return True


def _shown(value: object) -> str:
    try:
        text = repr(value[:_SHOWN] if isinstance(value, (str, tuple)) else value)
    except ValueError:  # a whole number of more digits than Python writes
        text = "a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
