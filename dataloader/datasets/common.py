"""Helpers of the dataset readers: well names, control types, and validation of the finished manifest."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from camae.dataloader.manifest import METADATA, Manifest
from camae.errors import CamaeError

CONTROL_TYPES = {
    "negcon": "negcon",
    "negative_control": "negcon",
    "negative": "negcon",
    "poscon": "poscon",
    "positive_control": "poscon",
    "positive": "poscon",
}
_WELL = re.compile(r"^\s*([A-Za-z]{1,2})[_ ]?0*(\d{1,2})\s*$")


def normal_well(well: str) -> str:
    """Canonical well name: "a1" -> "A01". Anything that is not a well comes back as it is."""
    match = _WELL.match(well)
    return f"{match[1].upper()}{int(match[2]):02d}" if match else well


def files_below(root: Path) -> Iterator[str]:
    """Recursive file listing: names of all files below root, relative and with `/`, folder by folder in order.

    Raises CamaeError for a folder that cannot be listed: its sites would be missing in silence.
    """

    def refuse(error: OSError) -> None:
        raise CamaeError(f"{error.filename}: this folder cannot be listed ({error.strerror})")

    for folder, folders, files in os.walk(root, onerror=refuse):
        folders.sort()
        at = os.path.relpath(folder, root).replace(os.sep, "/")
        yield from (file if at == "." else f"{at}/{file}" for file in sorted(files))


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
) -> Manifest:
    """Validates a manifest; drops incomplete sites on request.

    table:      one row per site with text cells; missing `Metadata_*` columns of METADATA are added empty.
    channels:   names of the channel columns, all of which a site must have.
    incomplete: "error" refuses sites that lack a channel or file, listing them; "skip" drops them with a warning.
    absent:     per row, a phrase that says which named file is missing ("" where none is).
    mixed:      the rows come from plates that declare different channels, so `absent` alone decides.
    Raises CamaeError for incomplete sites, or when none is left.
    """
    if incomplete not in ("error", "skip"):
        raise CamaeError(f"incomplete={incomplete!r}: must be 'error' or 'skip'")
    table = table.copy()
    for column in METADATA:
        if column not in table:
            table[column] = ""
    extra = [c for c in table.columns if c.startswith("Metadata_") and c not in METADATA]
    other = [c for c in table.columns if not c.startswith("Metadata_") and c not in channels]
    table = table[[*METADATA, *extra, *channels, *other]].fillna("").reset_index(drop=True)
    lacking = (table[list(channels)] == "").to_numpy()
    reasons = absent.reset_index(drop=True) if absent is not None else pd.Series("", index=table.index)
    bad = (lacking.any(axis=1) & (not mixed)) | (reasons != "").to_numpy()
    if not bad.any():
        return Manifest(table, root)
    listing = _listing(table, bad, lacking, reasons, channels)
    message = f"{int(bad.sum())} of {len(table)} sites under {root} are incomplete: {listing}"
    if incomplete == "error":
        raise CamaeError(f"{message}; pass incomplete='skip' (--incomplete skip) to leave them out")
    if bad.all():
        raise CamaeError(f"no complete site is left under {root}: {listing}")
    warnings.warn(f"{message}; they are left out", stacklevel=3)
    return Manifest(table[~bad], root)


def _listing(
    table: pd.DataFrame, bad: np.ndarray, lacking: np.ndarray, reasons: pd.Series, channels: Sequence[str]
) -> str:
    shown = []
    for row in np.flatnonzero(bad)[:20]:
        site = table.iloc[row]
        place = " ".join(
            part
            for part in (
                site.Metadata_Batch,
                f"plate {site.Metadata_Plate}",
                f"well {site.Metadata_Well}",
                f"site {site.Metadata_Site}",
            )
            if part
        )
        names = [c for c, gone in zip(channels, lacking[row], strict=True) if gone]
        shown.append(f"{place}: " + (reasons.iloc[row] or f"lacks {', '.join(names)}"))
    more = int(bad.sum()) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more > 0 else "")
