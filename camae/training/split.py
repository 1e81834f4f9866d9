"""Held-out data: whole plates or experiments, never crops of a training well."""

from __future__ import annotations

import numpy as np

from camae.dataloader.manifest import Manifest
from camae.errors import CamaeError

_COLUMN = {"plate": "Metadata_Plate", "experiment": "Metadata_Batch"}
HELD_OUT = 0.1


def split(manifest: Manifest, val: str | None) -> tuple[Manifest, Manifest | None]:
    """(training, validation) manifests.

    val: None; "plate" or "experiment": the last tenth by name, at least one; "plate:A,B": those named.
    A plate name that occurs in several experiments is one plate in each.
    """
    if val is None:
        return manifest, None
    kind, _, named = val.partition(":")
    column = _COLUMN.get(kind)
    if column is None:
        raise CamaeError(f"val={val!r}: use 'plate', 'experiment', or names as in 'plate:P1,P2'")
    if column not in manifest.table:
        raise CamaeError(f"val={val!r} needs the column {column}, which the manifest does not have")
    groups = _groups(manifest, kind)
    names = sorted(set(groups))
    if named:
        chosen = [n.strip() for n in named.split(",")]
        known = set(names) | set(manifest.table[column])
        if missing := [n for n in chosen if n not in known]:
            raise CamaeError(f"val={val!r}: no {kind} {', '.join(missing)}; there are {', '.join(names)}")
        held = np.isin(groups, chosen) | np.isin(manifest.table[column].to_numpy(str), chosen)
    else:
        held = np.isin(groups, names[-max(1, round(HELD_OUT * len(names))) :])
    if held.all():
        raise CamaeError(
            f"val={val!r} would hold out everything: the manifest has {len(names)} {kind}(s), and training needs one"
        )
    return manifest.select(~held), manifest.select(held)


def names_of(manifest: Manifest, val: str) -> tuple[set[str], set[str]]:
    """The groups of a manifest that `val` could name: within their experiment, and by their bare name."""
    kind = val.partition(":")[0]
    if kind not in _COLUMN or _COLUMN[kind] not in manifest.table:
        split(manifest, val)  # says what is wrong
    return set(_groups(manifest, kind)), set(manifest.table[_COLUMN[kind]])


def _groups(manifest: Manifest, kind: str) -> np.ndarray:
    """The name of every row's group; plates are named within their experiment."""
    table = manifest.table
    if kind == "plate" and "Metadata_Batch" in table:
        return (table["Metadata_Batch"].astype(str) + "/" + table["Metadata_Plate"].astype(str)).to_numpy(str)
    return table[_COLUMN[kind]].to_numpy(str)
