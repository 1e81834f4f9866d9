"""Profile files of one or more models, as `camae map` and `camae benchmark` take them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from camae.errors import CamaeError
from camae.maps.profiles import ProfileTable, column, join_profile_tables, read_profile_table
from camae.wells import PLATE

ProfileFile: TypeAlias = str | Path
ProfileFiles: TypeAlias = Mapping[str, ProfileFile | Sequence[ProfileFile]] | Sequence[ProfileFile]


def profiles_by_model(
    embeddings: ProfileFiles,
    plate: str | None = "Metadata_Plate",
    features: Literal["known", "all"] = "known",
) -> dict[str, ProfileTable]:
    """Profiles by model, of files as `run_benchmark` and `camae map` take them.

    plate: the column of plates. features: "known", or "all" columns of numbers that are no metadata.
    """
    if features not in ("known", "all"):
        raise CamaeError(f"features '{features}' are not known; choose known or all")
    if not isinstance(embeddings, Mapping):
        listed = [embeddings] if isinstance(embeddings, str | Path) else list(embeddings)
        if not listed:
            raise CamaeError("no embeddings are given; name at least one profile file")
        named = [model_and_file(item) for item in listed]
        if not all(model for model, _ in named):
            if any(model for model, _ in named):
                raise CamaeError(
                    "some profile files have a model's name and some have none; write model=file for all"
                )
            return _models_of_files([path for _, path in named], plate, features)
        embeddings = {model: [path for other, path in named if other == model] for model, _ in named}
    out = {}
    for model, files in embeddings.items():
        paths = [files] if isinstance(files, str | Path) else list(files)
        if not paths:
            raise CamaeError(f"no profile file is given for the model {model}")
        out[model] = join_profile_tables([_read(path, features) for path in paths])
    return out


def model_and_file(item: ProfileFile) -> tuple[str, Path]:
    """Model, "" where none is named, and file of "model=file"."""
    model, separator, path = str(item).partition("=")
    return (model, Path(path)) if separator and not Path(item).is_file() else ("", Path(item))


def _read(path: ProfileFile, features: Literal["known", "all"]) -> ProfileTable:
    table = read_profile_table(path)
    if features == "known" or not len(table.omitted):
        return table
    return read_profile_table(path, [*table.features, *(str(one.item) for one in table.omitted)])


def _models_of_files(
    paths: list[Path], plate: str | None, features: Literal["known", "all"]
) -> dict[str, ProfileTable]:
    """One screen of files that hold different plates, or a model for each of files that hold the same."""
    tables = [_read(path, features) for path in paths]
    names = [path.name.split(".")[0] for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    by_name = dict(zip(names, tables, strict=True))
    if len(tables) == 1 or plate is None:
        return by_name
    plates = []
    for table in tables:
        wider = [table.meta[name] for name in PLATE if name in table.meta]
        plates.append(set(zip(column(table.meta, plate, "plate"), *wider, strict=True)))
    if all(own == plates[0] for own in plates):
        return by_name
    if sum(map(len, plates)) == len(set.union(*plates)):
        if all(table.features == tables[0].features for table in tables):
            return {_common_name(paths): join_profile_tables(tables)}
        return by_name
    raise CamaeError(
        f"{paths[0].name} and {next(p for p, own in zip(paths, plates, strict=True) if own != plates[0]).name} share "
        "some plates and not all; write model=file for each file, so that the plates of a model go together"
    )


def _common_name(paths: list[Path]) -> str:
    """What the names of files begin with, else their folder's name."""
    letters = zip(*(path.name.split(".")[0] for path in paths), strict=False)
    start = "".join(first for first, *_ in itertools.takewhile(lambda row: len(set(row)) == 1, letters))
    return start.rstrip("_-. ") or paths[0].resolve().parent.name or "screen"
