"""Training data: weighted data sets, the validation split, the check for planes without signal, micro-batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from camae.dataloader.datasets import read_manifest
from camae.dataloader.manifest import Manifest
from camae.dataloader.mixture import Source
from camae.dataloader.plane_batch import PlaneBatch
from camae.dataloader.read_pixels import read_site
from camae.errors import CamaeError
from camae.files import path_of
from camae.training.toml_file import read_toml

DataSet: TypeAlias = str | Path | Manifest
Weighted: TypeAlias = DataSet | tuple[DataSet, float]
Data: TypeAlias = DataSet | Sequence[Weighted] | Mapping[str, Weighted]

HELD_OUT = 0.1
_COLUMN = {"plate": "Metadata_Plate", "experiment": "Metadata_Batch"}


def open_data(
    data: Data,
    *,
    format: str | None = None,
    incomplete: str = "error",
    pattern: str | None = None,
    metadata: Sequence[str | Path] = (),
    negative_controls: Sequence[str] = (),
    z: int | str | None = None,
    time: int | str | None = None,
    file_channels: Sequence[str] = (),
    variant: str | Path | None = None,
) -> list[Source]:
    """Data sets of a training, in order, with unique names.

    data: a manifest or folder; a list of them, each alone or as (manifest, weight); the same as a mapping from
        names; or a TOML file with one table per data set, `[name]`, `data = "path"` (from the file's folder),
        `weight = 2.0`. Without a weight a data set counts by its number of sites.
    format, incomplete, pattern, metadata, negative_controls, z, time, file_channels, variant: as in
        `camae.dataloader.read_manifest`.
    Raises CamaeError for a data set without rows.
    """
    if isinstance(data, (str, Path)) and Path(data).suffix == ".toml":
        data = _from_toml(Path(data))
    sources: list[Source] = []
    entries = list(_entries(data))
    folders = [_is_folder(data_set) for _, data_set, _ in entries]
    for (name, data_set, weight), is_folder in zip(entries, folders, strict=True):
        # Beside folders, tables name their files themselves.
        reads = is_folder or not any(folders)
        manifest = read_manifest(
            data_set,
            format if reads else None,
            incomplete,
            pattern if reads else None,
            metadata=metadata,
            negative_controls=negative_controls,
            z=z,
            time=time,
            file_channels=file_channels or None,
            variant=variant,
        )
        if len(manifest) == 0:
            raise CamaeError("the manifest has no rows: nothing to train on")
        taken = {s.name for s in sources}
        unique = next(n for n in _numbered(name) if n not in taken)
        sources.append(Source(unique, manifest, len(manifest) if weight is None else weight))
    if not sources:
        raise CamaeError("no data set was given: nothing to train on")
    return sources


def channels_of(sources: Sequence[Source]) -> tuple[str, ...]:
    """Channel names of all data sets in order of first appearance; a name is one channel in all of them."""
    return tuple(dict.fromkeys(name for s in sources for name in s.manifest.channels))


def _is_folder(data_set: DataSet) -> bool:
    return isinstance(data_set, str | Path) and Path(data_set).is_dir()


def _entries(data: Data) -> Iterator[tuple[str, DataSet, float | None]]:
    """(name, data set, weight) of every data set."""
    if isinstance(data, (str, Path, Manifest)):
        yield _name(data, 0), data, None
        return
    if not isinstance(data, Iterable):
        raise CamaeError(
            f"the data is a value of type {type(data).__name__}; give a manifest, a folder, or several of them"
        )
    items: Iterator[tuple[str | None, Weighted]]
    items = iter(data.items()) if isinstance(data, Mapping) else ((None, item) for item in data)
    for i, (name, item) in enumerate(items):
        if isinstance(item, (tuple, list)):
            if len(item) != 2 or isinstance(item[1], (str, Path, Manifest)):
                raise CamaeError(
                    f"data set {name or i}: give a manifest or a pair (manifest, weight), not {item!r}"
                )
            yield name or _name(item[0], i), item[0], item[1]
        else:
            yield name or _name(item, i), item, None


def _name(data_set: DataSet, i: int) -> str:
    if isinstance(data_set, Manifest):
        return data_set.root.name or f"data{i + 1}"
    path = path_of(data_set, "the data set").absolute()
    return path.parent.name if path.suffix else path.name


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}_{number}" for number in itertools.count(2))


def _from_toml(path: Path) -> dict[str, Weighted]:
    entries: dict[str, Weighted] = {}
    for name, table in read_toml(path, "file of data sets").items():
        if not isinstance(table, dict) or "data" not in table or set(table) - {"data", "weight"}:
            raise CamaeError(
                f'{path}: [{name}] needs data = "path" and may have weight = number, nothing else'
            )
        data_set = path.absolute().parent / table["data"]
        entries[name] = (data_set, float(table["weight"])) if "weight" in table else data_set
    return entries


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


def split(manifest: Manifest, val: str | None) -> tuple[Manifest, Manifest | None]:
    """(training, validation) manifests, split by whole plates or experiments.

    val: None; "plate" or "experiment": the last tenth by name, at least one; "plate:A,B": those named.
    A plate name that occurs in several experiments is one plate in each.
    Raises CamaeError where the groups are not there, or nothing would be left to train on.
    """
    if val is None:
        return manifest, None
    kind, _, named = val.partition(":")
    groups, bare_names = _groups(manifest, val)
    names = sorted(set(groups))
    if named:
        chosen = [n.strip() for n in named.split(",")]
        known = set(names) | set(bare_names)
        if missing := [n for n in chosen if n not in known]:
            raise CamaeError(f"val={val!r}: no {kind} {', '.join(missing)}; there are {', '.join(names)}")
        held = np.isin(groups, chosen) | np.isin(bare_names, chosen)
    else:
        held = np.isin(groups, names[-max(1, round(HELD_OUT * len(names))) :])
    if held.all():
        raise CamaeError(
            f"val={val!r} would hold out everything: the manifest has {len(names)} {kind}(s), and training needs one"
        )
    return manifest.select(~held), manifest.select(held)


def _split_one(manifest: Manifest, val: str) -> tuple[Manifest, Manifest | None]:
    kind, colon, named = val.partition(":")
    groups, bare_names = _groups(manifest, val)
    if not colon:
        return split(manifest, val) if len(set(groups)) > 1 else (manifest, None)
    known = set(groups) | set(bare_names)
    here = [n for n in (n.strip() for n in named.split(",")) if n in known]
    return split(manifest, f"{kind}:{','.join(here)}") if here else (manifest, None)


def _groups(manifest: Manifest, val: str) -> tuple[np.ndarray, np.ndarray]:
    """Name of every row's group, plates within their experiment, and its name alone."""
    kind = val.partition(":")[0]
    column = _COLUMN.get(kind)
    if column is None:
        raise CamaeError(f"val={val!r}: use 'plate', 'experiment', or names as in 'plate:P1,P2'")
    table = manifest.table
    if column not in table:
        raise CamaeError(f"val={val!r} needs the column {column}, which the manifest does not have")
    bare_names = table[column].to_numpy(str)
    if kind == "plate" and "Metadata_Batch" in table:
        return (table["Metadata_Batch"].astype(str) + "/" + table[column].astype(str)).to_numpy(
            str
        ), bare_names
    return bare_names, bare_names


class SignalGuard:
    """Check for planes without signal, the first time training sees their site.

    A crop may be empty background; a whole plane that is constant or holds NaN is refused.
    """

    def __init__(self, manifests: Sequence[Manifest], reader: str | None = None):
        self.manifests, self.reader = manifests, reader
        self._seen: set[tuple[int, int]] = set()

    def check(self, batch: PlaneBatch) -> None:
        """Raise CamaeError naming row, file and channel of a plane that is constant or holds NaN.

        Planes are not fetched from a device where the reader has looked at them.
        """
        source_B = batch.source_B.tolist() if len(batch.source_B) else [0] * batch.n_samples
        site_B = list(zip(source_B, batch.rows_B.tolist(), strict=True))
        new = set(site_B) - self._seen
        if not new:
            return
        sample_K = np.repeat(np.arange(batch.n_samples), batch.planes_per_sample).tolist()
        without_K = batch.constant_K.tolist() or (
            not plane_HW.max() > plane_HW.min()  # also true where either is NaN
            for plane_HW in batch.planes_KHW.cpu().numpy()
        )
        for without_signal, sample in zip(without_K, sample_K, strict=True):
            source, row = site_B[sample]
            if without_signal and (source, row) in new:
                read_site(self.manifests[source], row, check_constant=True, reader=self.reader)
        self._seen |= new


def micro_batches(
    tokens_B: tuple[int, ...], budget: int | None, at_least: int = 1, together: int = 1
) -> list[tuple[int, int]]:
    """(first, last + 1) samples of each pass: as few passes as `budget` tokens each allow, about equally full.

    tokens_B: tokens (planes x patches, masked ones included) of each sample. at_least: smallest number of passes,
    for ranks that have to make the same number. together: consecutive samples that stay in one pass; it divides their
    number. Raises CamaeError for a sample, or such a group, larger than the budget.
    """
    if together > 1:
        tokens_G = tuple(sum(tokens_B[i : i + together]) for i in range(0, len(tokens_B), together))
        if budget is not None and max(tokens_G) > budget:
            raise CamaeError(
                f"token_budget {budget} is less than the {max(tokens_G)} tokens of the {together} crops of a "
                "cross_well_group"
            )
        return [(a * together, b * together) for a, b in micro_batches(tokens_G, budget, at_least)]
    if budget is not None and max(tokens_B) > budget:
        raise CamaeError(
            f"token_budget {budget} is less than the {max(tokens_B)} tokens of one crop (planes x patches)"
        )
    total, limit = sum(tokens_B), budget or math.inf
    count = max(at_least, math.ceil(total / limit), 1)
    while True:
        bounds = _even_bounds(tokens_B, count)
        if all(sum(tokens_B[a:b]) <= limit for a, b in bounds):
            return bounds
        count += 1


def _even_bounds(tokens_B: tuple[int, ...], count: int) -> list[tuple[int, int]]:
    """`count` runs of consecutive samples, none empty, with cuts where the running sum is nearest to even."""
    ends = list(itertools.accumulate(tokens_B))
    edges = [0]
    for i in range(1, count):
        goal = ends[-1] * i / count
        room = range(edges[-1] + 1, len(tokens_B) - (count - i) + 1)
        edges.append(min(room, key=lambda b: abs(ends[b - 1] - goal)))
    edges.append(len(tokens_B))
    return list(itertools.pairwise(edges))
