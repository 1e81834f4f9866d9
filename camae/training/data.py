"""What `camae.train` accepts as data, as named and weighted data sets, and what is held out of them."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from camae.dataloader.datasets import read_manifest
from camae.dataloader.manifest import Manifest
from camae.dataloader.mixture import Source
from camae.errors import CamaeError, MissingFileError
from camae.training.split import names_of, split

Images: TypeAlias = str | Path | Manifest
Data: TypeAlias = (
    Images | Sequence[Images | tuple[Images, float]] | Mapping[str, Images | tuple[Images, float]]
)


def open_data(data: Data, **reading: Any) -> list[Source]:
    """The data sets of `data`, in order, with unique names.

    data: a manifest or folder; a list of them, each alone or as (manifest, weight); the same as a mapping from
        names; or a TOML file with one table per data set, `[name]`, `data = "path"` (from the file's folder),
        `weight = 2.0`. Without a weight a data set counts by its number of sites.
    reading: further arguments of `camae.dataloader.read_manifest`.
    """
    if isinstance(data, (str, Path)) and Path(data).suffix == ".toml":
        data = _from_toml(Path(data))
    sources: list[Source] = []
    for name, images, weight in _entries(data):
        manifest = read_manifest(images, **reading)
        if len(manifest) == 0:
            raise CamaeError("the manifest has no rows: nothing to train on")
        taken = {s.name for s in sources}
        unique = next(n for n in _numbered(name) if n not in taken)
        sources.append(Source(unique, manifest, len(manifest) if weight is None else weight))
    if not sources:
        raise CamaeError("no data set was given: nothing to train on")
    return sources


def channels_of(sources: Sequence[Source]) -> tuple[str, ...]:
    """Every channel name of the data sets, in order of first appearance; a name is one channel in all of them."""
    return tuple(dict.fromkeys(name for s in sources for name in s.manifest.channels))


def split_data(sources: Sequence[Source], val: str | None) -> tuple[list[Source], list[Source]]:
    """(training, validation) data sets; see `split`.

    Of several data sets, each gives what it has of the named plates, or its own last tenth; one that has a
    single plate (or experiment) is trained on whole, as long as another gives something.
    """
    if len(sources) == 1 or val is None:
        parts = [split(s.manifest, val) for s in sources]
    else:
        parts = [_split_one(s.manifest, val) for s in sources]
        if all(held is None for _, held in parts):
            raise CamaeError(
                f"val={val!r} holds out nothing: no data set has what it names, or a second group to train on"
            )
    pairs = list(zip(sources, parts, strict=True))
    training = [Source(s.name, kept, s.weight) for s, (kept, _) in pairs]
    return training, [Source(s.name, held, s.weight) for s, (_, held) in pairs if held is not None]


def _split_one(manifest: Manifest, val: str) -> tuple[Manifest, Manifest | None]:
    kind, colon, named = val.partition(":")
    known = names_of(manifest, val)
    if not colon:
        return split(manifest, val) if len(known[0]) > 1 else (manifest, None)
    here = [n for n in (n.strip() for n in named.split(",")) if any(n in names for names in known)]
    return split(manifest, f"{kind}:{','.join(here)}") if here else (manifest, None)


def _entries(data: Data) -> Iterator[tuple[str, Images, float | None]]:
    """(name, images, weight) of every data set."""
    if isinstance(data, (str, Path, Manifest)):
        yield _name(data, 0), data, None
        return
    items: Any = data.items() if isinstance(data, Mapping) else ((None, item) for item in data)
    for i, (name, item) in enumerate(items):
        weighted = isinstance(item, (tuple, list))
        if weighted and (len(item) != 2 or isinstance(item[1], (str, Path, Manifest))):
            raise CamaeError(
                f"data set {name or i}: give a manifest or a pair (manifest, weight), not {item!r}"
            )
        images, weight = item if weighted else (item, None)
        yield name or _name(images, i), images, weight


def _name(images: Images, i: int) -> str:
    if isinstance(images, Manifest):
        return images.root.name or f"data{i + 1}"
    path = Path(images).absolute()
    return path.parent.name if path.suffix else path.name


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}_{number}"
        number += 1


def _from_toml(path: Path) -> dict[str, tuple[Path, float] | Path]:
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file of data sets")
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise CamaeError(f"{path}: not valid TOML ({error})") from None
    entries: dict[str, tuple[Path, float] | Path] = {}
    for name, table in tables.items():
        if not isinstance(table, dict) or "data" not in table or set(table) - {"data", "weight"}:
            raise CamaeError(
                f'{path}: [{name}] needs data = "path" and may have weight = number, nothing else'
            )
        images = path.absolute().parent / table["data"]
        entries[name] = (images, float(table["weight"])) if "weight" in table else images
    return entries
