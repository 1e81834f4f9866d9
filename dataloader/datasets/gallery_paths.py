"""Local folders of paths that a `load_data` table names as they were on another machine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class NamedFolder:
    """A folder as a table names it, the plate whose images it holds, and where to look for it on this machine."""

    folder: str
    plate: str
    bases: tuple[Path, ...]


def local_folders(named: Iterable[NamedFolder]) -> dict[NamedFolder, str]:
    """Local folder of each named one: its longest tail found under a base.

    The tail has to hold the folder of the plate, where the name has one. Any other tail ("Images") is taken only when
    no other named folder leads to the same place: the images of another plate are never taken for this one's. What
    is not found becomes a path that does not exist.
    """
    every = list(dict.fromkeys(named))
    found = {name: _found(name) for name in every}
    claims: dict[str, set[str]] = {}
    for name, (local, _) in found.items():
        claims.setdefault(local, set()).add(_plain(name.folder))
    return {
        name: local if local and (sure or len(claims[local]) == 1) else _expected(name)
        for name, (local, sure) in found.items()
    }


def _plain(folder: str) -> str:
    return folder.rstrip("/\\").removeprefix("file://").removeprefix("file:")


def _parts(folder: str) -> list[str]:
    address = _plain(folder).split("://", 1)[-1].replace("\\", "/")
    return [p for p in PurePosixPath(address).parts if p not in ("/", ".", "..")]


def _found(name: NamedFolder) -> tuple[str, bool]:
    """Local folder ("" for none), and whether it is surely the one of this plate."""
    folder = _plain(name.folder)
    if "://" not in folder and os.path.isabs(folder) and os.path.isdir(folder):
        return folder, True
    parts = _parts(folder)
    own = _plate_part(parts, name.plate)
    candidates = (base.joinpath(*parts[start:]) for start in range(len(parts)) for base in name.bases)
    local = [path for path in candidates if path.is_dir()]
    sure = next((path for path in local if own is not None and own in path.parts), None)
    if sure is not None:
        return str(sure), True
    if own is None:
        return (str(local[0]), False) if local else ("", False)
    doubtful = [path for path in local if not _is_of_another_plate(path, own, name.plate)]
    return (str(doubtful[0]), False) if doubtful else ("", False)


def _plate_part(parts: list[str], plate: str) -> str | None:
    """The last part of a path that names the plate: "BR1__2021-05-02" for BR1."""
    whole = re.compile(rf"(?<![A-Za-z0-9]){re.escape(plate)}(?![A-Za-z0-9])")
    return next((p for p in reversed(parts) if plate and whole.search(p)), None)


def _is_of_another_plate(path: Path, own: str, plate: str) -> bool:
    """Whether a folder above is named like this plate's, but for the plate: "PL1__2020" for "PL2__2020"."""
    if own == plate:
        return False
    alike = re.compile("[A-Za-z0-9-]+".join(map(re.escape, own.split(plate))))
    return any(alike.fullmatch(part) for part in path.parts)


def _expected(name: NamedFolder) -> str:
    """Where the folder would be if it were here; an address on the network stays one."""
    folder = _plain(name.folder)
    if "://" in folder:
        return folder
    parts = _parts(folder)
    if not parts:
        return str(name.bases[0])
    tail = parts[parts.index("images") :] if "images" in parts else parts
    return str(name.bases[0].joinpath(*tail))
