"""Atomic files: written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_atomic(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file beside `path` (same suffix), flush it to disk, rename it into place."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries (names just made, renamed or removed) to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json_lines(path: str | Path) -> list[Any]:
    """One value per line; a last line cut short by a kill is left out, a missing file has none."""
    path = Path(path)
    rows: list[Any] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def write_text(path: str | Path, text: str) -> Path:
    """Atomic text file, UTF-8."""
    return write_atomic(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, value: object) -> Path:
    """Atomic, indented JSON."""
    return write_text(path, json.dumps(value, indent=1) + "\n")
