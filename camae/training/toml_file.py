"""TOML files of settings: reading with errors that name the file, and writing."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from camae.errors import CamaeError, MissingFileError

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def read_toml(path: str | Path, kind: str = "configuration file") -> dict[str, object]:
    """Tables and values of a TOML file.

    kind: what the file is, for the message. Raises MissingFileError where there is no file, CamaeError where it is not
    TOML.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such {kind}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CamaeError(f"{path}: the {kind} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # TOML, UTF-8 and numbers of thousands of digits
        raise CamaeError(f"{path}: not valid TOML ({error})") from None


def to_toml(values: Mapping[str, object]) -> str:
    """TOML text of nested mappings of strings, numbers, booleans and sequences; None is left out."""
    return "\n".join(_table(values, "")) + "\n"


def _table(values: Mapping[str, object], prefix: str) -> list[str]:
    lines = [
        f"{_key(key)} = {_scalar(value)}"
        for key, value in values.items()
        if not isinstance(value, Mapping) and value is not None
    ]
    for key, value in values.items():
        if isinstance(value, Mapping):
            name = f"{prefix}{_key(key)}"
            lines += ["", f"[{name}]", *_table(value, f"{name}.")]
    return lines


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _scalar(name)


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_scalar(v) for v in value) + "]"
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
