"""Helpers of the dataset readers: files and tables of a folder, control types, validation of the finished manifest."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from camae.dataloader.backends.addresses import split_address
from camae.dataloader.identity import normal_columns
from camae.dataloader.manifest import METADATA, Manifest
from camae.errors import CamaeError
from camae.omissions import Omissions
from camae.wells import WELL

INCOMPLETE = ("error", "skip", "mixed", "keep")
CONTROL_TYPES = {
    "negcon": "negcon",
    "negative_control": "negcon",
    "negative": "negcon",
    "poscon": "poscon",
    "positive_control": "poscon",
    "positive": "poscon",
}
TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")


def files_below(root: Path) -> Iterator[str]:
    """Recursive file listing: names of all files below root, relative and with `/`, folder by folder in order.

    Links to folders are followed, but for one that leads to a folder it stands in. Raises CamaeError for a folder that
    cannot be listed: its sites would be missing in silence.
    """

    def refuse(error: OSError) -> None:
        raise CamaeError(f"{error.filename}: this folder cannot be listed ({error.strerror})")

    for folder, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        folders[:] = sorted(name for name in folders if not _leads_up(folder, name))
        at = os.path.relpath(folder, root).replace(os.sep, "/")
        yield from (file if at == "." else f"{at}/{file}" for file in sorted(files))


def _leads_up(folder: str, name: str) -> bool:
    """Whether it is a link to a folder it stands in, which has no end."""
    path = os.path.join(folder, name)
    real, here = os.path.realpath(path), os.path.realpath(folder)
    return os.path.islink(path) and os.path.commonpath([real, here]) == real


def table_stem(name: str, suffixes: Sequence[str] = TABLE_SUFFIXES) -> str | None:
    """Name of a table without its suffixes: "a" for "a.csv", "a.CSV" and "a.csv.gz"; None for other files."""
    lower = name.lower().removesuffix(".gz")
    suffix = next((s for s in suffixes if lower.endswith(s)), None)
    return name[: len(lower) - len(suffix)] if suffix else None


def tables_in(folder: Path, suffixes: Sequence[str] = TABLE_SUFFIXES) -> list[Path]:
    """Tables directly in a folder, in order of their names; [] where there is no such folder."""
    if not folder.is_dir():
        return []
    found = (p for p in folder.iterdir() if not p.name.startswith(".") and table_stem(p.name, suffixes))
    return sorted(p for p in found if p.is_file())


def table_named(folder: Path, stem: str, suffixes: Sequence[str] = TABLE_SUFFIXES) -> Path | None:
    """Table of a folder by its name without suffixes, Parquet first where there are several; None for none."""
    found = [p for p in tables_in(folder, suffixes) if table_stem(p.name, suffixes) == stem]
    return min(found, key=lambda p: (p.suffix.lower() != ".parquet", p.name), default=None)


def control_type(text: str) -> str:
    """Canonical control type: "negcon", "poscon" or "", from words like negative_control or poscon_diverse."""
    text = text.strip().lower()
    for word, kind in CONTROL_TYPES.items():
        if text.startswith(word):
            return kind
    return ""


def validated(
    table: pd.DataFrame,
    root: str | Path,
    channels: Sequence[str],
    incomplete: str,
    absent: pd.Series | None = None,
    mixed: bool = False,
    left_out: Omissions | None = None,
    notes: Sequence[str] = (),
) -> Manifest:
    """Validates a manifest; drops incomplete sites on request.

    table:      one row per site with text cells; missing `Metadata_*` columns of METADATA are added empty.
    channels:   names of the channel columns, all of which a site must have.
    incomplete: see `read_manifest`.
    absent:     per row, a phrase that says which named file is missing ("" where none is).
    mixed:      the rows come from plates that declare different channels, so `absent` alone decides.
    left_out:   what was left out so far; sites that are dropped are added. notes: on the joins that were made.
    Raises CamaeError for incomplete sites, or when none is left.
    """
    left_out = left_out if left_out is not None else Omissions()
    table = normal_columns(table.copy())
    for column in METADATA:
        if column not in table:
            table[column] = ""
    extra = [c for c in table.columns if c.startswith("Metadata_") and c not in METADATA]
    other = [c for c in table.columns if not c.startswith("Metadata_") and c not in channels]
    table = table[[*METADATA, *extra, *channels, *other]].fillna("").reset_index(drop=True)
    lacking = (table[list(channels)] == "").to_numpy()
    reasons = absent.reset_index(drop=True) if absent is not None else pd.Series("", index=table.index)
    reasons = reasons.where(reasons != "", _lacks(lacking & (not mixed), channels))
    bad = (reasons != "").to_numpy()
    if incomplete == "mixed":
        bad = lacking.all(axis=1) | np.array([": no such file" in r for r in reasons], bool)
    elif incomplete == "keep":
        bad = lacking.all(axis=1)
    return left_incomplete(table, root, bad, reasons.tolist(), incomplete, left_out, notes)


def _lacks(lacking: np.ndarray, channels: Sequence[str]) -> list[str]:
    """Phrase on the channels that each row lacks, "" for none."""
    return [
        f"lacks {', '.join(c for c, gone in zip(channels, row, strict=True) if gone)}" if row.any() else ""
        for row in lacking
    ]


def left_incomplete(
    table: pd.DataFrame,
    root: str | Path,
    bad: np.ndarray,
    reasons: Sequence[str],
    incomplete: str,
    left_out: Omissions,
    notes: Sequence[str] = (),
) -> Manifest:
    """Manifest without the incomplete rows `bad`, which are noted, or an error that lists them with their reasons."""
    if not bad.any():
        return Manifest(table, root, left_out, notes)
    rows = np.flatnonzero(bad).tolist()
    shown = [f"{_words(table.iloc[row])}: {reasons[row]}" for row in rows[:20]]
    listing = "; ".join(shown) + (f"; and {len(rows) - 20} more" if len(rows) > 20 else "")
    message = f"{len(rows)} of {len(table)} sites under {root} are incomplete: {listing}"
    if incomplete != "skip":
        raise CamaeError(f"{message}; pass incomplete='skip' (--incomplete skip) to leave them out")
    if bad.all():
        raise CamaeError(f"no complete site is left under {root}: {listing}")
    warnings.warn(f"{message}; they are left out", stacklevel=3)
    for row in rows:
        # The same clause for all, so that they are counted together.
        what, gone, _ = reasons[row].partition(": no such file")
        left_out.add(
            "site", _words(table.iloc[row]), f"the file of its {what} is not there" if gone else what
        )
    return Manifest(table[~bad], root, left_out, notes)


def _words(site: pd.Series) -> str:
    names = ("Batch", "Plate", "Well", "Site", "Time", "Z")
    parts = [(n, site.get(f"Metadata_{n}", "")) for n in names]
    words = " ".join(text if n == "Batch" else f"{n.lower()} {text}" for n, text in parts if text != "")
    return words or f"row {site.name}"


def lacking_channels(manifest: Manifest) -> npt.NDArray[np.bool_]:
    """Which channels each site lacks that other sites of its plate have, (sites, channels).

    The sites of one plate have one set of channels, plates may differ; without plates, all sites have one set.
    """
    table = manifest.table
    has = (table[list(manifest.channels)] != "").to_numpy()
    keys = [c for c in WELL[:3] if c in table] if "Metadata_Plate" in table else []
    group = table.groupby(keys, sort=False).ngroup().to_numpy() if keys else np.zeros(len(table), np.int64)
    declared = np.zeros((group.max() + 1, has.shape[1]), bool)
    np.logical_or.at(declared, group, has)
    return declared[group] & ~has


def absent_files(manifest: Manifest) -> list[str]:
    """Phrase on the first local file of each site that is not there, "" for none; every folder is listed once."""
    listings: dict[str, set[str]] = {}

    def there(address: str) -> bool:
        folder, _, name = split_address(address)[0].rpartition("/")
        if folder not in listings:
            listings[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        return name in listings[folder]

    found = []
    for row in range(len(manifest)):
        planes = ((c, manifest.path(row, c)) for c in manifest.site_channels(row))
        gone = ((c, p) for c, p in planes if "://" not in p and not there(p))
        found.append(next((f"channel {c}: no such file {p}" for c, p in gone), ""))
    return found


def complete(manifest: Manifest, incomplete: str) -> Manifest:
    """Completeness of a manifest file: sites that lack a channel which others of their plate have (see
    lacking_channels) are refused, left out or accepted, as `incomplete` says (see `read_manifest`); "skip" leaves out
    sites whose files are not there as well.
    """
    lacking = lacking_channels(manifest)
    reasons = _lacks(lacking, manifest.channels)
    if incomplete == "skip":  # else reading a site says that its file is not there
        reasons = [lacks or gone for lacks, gone in zip(reasons, absent_files(manifest), strict=True)]
    bad = np.array([reason != "" for reason in reasons])
    if incomplete in ("mixed", "keep") or not bad.any():
        return manifest
    try:
        return left_incomplete(
            manifest.table, manifest.root, bad, reasons, incomplete, manifest.left_out, manifest.notes
        )
    except CamaeError as error:
        if incomplete == "skip":
            raise
        others = "sites of the same plate" if "Metadata_Plate" in manifest.table else "sites"
        raise CamaeError(f"{error}, or 'mixed' to accept it where other {others} have the channel") from None


def warn_left_out(kind: str, items: Sequence[str], total: int, root: Path, reason: str) -> None:
    """Warn of files that a reader leaves out, with their count and the first of them."""
    first = ", ".join(items[:3]) + (" ..." if len(items) > 3 else "")
    warnings.warn(
        f"{len(items)} of {total} {kind}s under {root} are left out: {reason}: {first}", stacklevel=3
    )


def unique(names: Iterable[str]) -> list[str]:
    """Names in their order, each once."""
    return list(dict.fromkeys(names))
