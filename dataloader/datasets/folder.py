"""Dataset reader of a plain folder: plate, well, site and channel come from the file names.

Where names give no channel, each file holds all channels of a field, and its metadata or the user name them.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from camae.dataloader.backends.vendor import SUFFIXES
from camae.dataloader.datasets.common import files_below, validated, warn_left_out
from camae.dataloader.datasets.fields import FieldRows, read_fields, read_stacks
from camae.dataloader.datasets.name_matching import Groups, match_builtin, match_user_pattern
from camae.dataloader.datasets.site_keys import Key, key_columns, site_key
from camae.dataloader.datasets.stacks import Choice
from camae.dataloader.datasets.tiff_axes import has_pages, holds_channels
from camae.dataloader.manifest import Manifest
from camae.errors import CamaeError
from camae.omissions import Omissions

IMAGE_SUFFIXES = (".tif", ".tiff", ".png", ".jp2", *SUFFIXES)
# Formats of images that are not read: they are counted, not passed over in silence.
_OTHER_SUFFIXES = (
    *(
        ".jpg",
        ".jpeg",
        ".bmp",
        ".gif",
        ".webp",
        ".dib",
        ".c01",
        ".flex",
        ".stk",
        ".lsm",
    ),
    *(".ims", ".vsi", ".oib", ".oif", ".dv", ".mrc", ".svs", ".ndpi"),
)
_GUID = r"[0-9A-F]{8}-(?:[0-9A-F]{4}-){3}[0-9A-F]{12}"
_END = r"\.(?:tiff?|png|jp2)$"
_WELL = r"(?P<well>[A-Z]{1,2}-?\d{1,3}|r\d{1,2}c\d{1,2})"
_STEPS = r"(?:TimePoint_(?P<time>\d+)/)?(?:ZStep_(?P<z>\d+)/)?"
# Tried in this order, upper and lower case alike; the one that fits most files is taken.
PATTERNS = {
    "ImageXpress": (
        rf"{_STEPS}(?P<plate>[^/]+)_{_WELL}_s(?P<site>\d+)_(?P<channel>w\d{{1,2}})(?:{_GUID})?{_END}"
    ),
    "plate_well_site_channel": rf"{_STEPS}(?P<plate>[^/]+)_{_WELL}_s(?P<site>\d+)_(?P<channel>[^_/]+){_END}",
    "well_site_channel": rf"(?:^|/){_WELL}_s(?P<site>\d+)_(?P<channel>[^_/]+){_END}",
    "Opera Phenix": (
        r"r(?P<row>\d{2})c(?P<column>\d{2})f(?P<site>\d+)p(?P<z>\d+)-(?P<channel>ch\d+)sk(?P<time>\d+)fk\d+fl\d+"
        + _END
    ),
    "CellVoyager": (
        rf"(?P<plate>[^/]+)_{_WELL}_T(?P<time>\d{{4}})F(?P<site>\d{{3,4}})L\d{{2}}A\d{{2}}"
        rf"Z(?P<z>\d{{2,3}})(?P<channel>C\d{{2}}){_END}"
    ),
}
_FIELD_END = r"(?:\.ome)?\.(?:tiff?|png|jp2|czi|nd2|lif)$"
# Wells of 1536-well plates and smaller: "w1" and "s1", which end other names, are none.
_FIELD_WELL = r"(?P<well>(?:[A-P]|A[A-F])-?(?:0?[1-9]|[1-4]\d))"
_FIELD_SITE = r"(?:[_-](?:s|f|site|field|fov)[_-]?(?P<site>\d+))?"
# For files that hold all channels of a field. Tried for the names that give no channel.
FIELD_PATTERNS = {
    "Opera Phenix field": rf"r(?P<row>\d{{2}})c(?P<column>\d{{2}})f(?P<site>\d+){_FIELD_END}",
    "well_site": rf"(?:^|/){_FIELD_WELL}{_FIELD_SITE}{_FIELD_END}",
    # The shortest plate: "f02" in P1_A01_f02 is the field, though it could be a well.
    "plate_well_site": rf"(?P<plate>[^/]+?)_{_FIELD_WELL}{_FIELD_SITE}{_FIELD_END}",
}


def read(
    path: str | os.PathLike[str],
    incomplete: str = "error",
    pattern: str | None = None,
    choice: Choice | None = None,
) -> Manifest:
    """Manifest of every image under `path` whose name (relative, with `/`) fits the pattern.

    pattern: regular expression, searched for; groups plate, well (or row and column), site, channel, and
             optionally batch, time, z. Missing plate: the folder's name (of a Phenix export, the one around Images);
             missing site: "1". A time or z group becomes the column Metadata_Time or Metadata_Z and a part of the
             site's identity; those of the known schemes do where a site has several. Without a group channel each
             file holds all channels of a field.
    choice:  of z planes and time points in the files, and the names of channels that files do not name.
    Images whose names do not fit are left out with a warning and stand in `left_out`; `notes` says what files of
    several planes hold. Raises CamaeError when no image fits, two files claim the same plane, or as read_fields does.
    """
    root, choice = Path(path).absolute(), choice or Choice()
    visible = [n for n in files_below(root) if not n.rpartition("/")[2].startswith(".")]
    names = [n for n in visible if n.lower().endswith(IMAGE_SUFFIXES)]
    left_out = _other_formats(visible, root)
    if not names:
        other = f" (but {left_out.lines()[0]})" if len(left_out) else ""
        raise CamaeError(f"{root}: holds no TIFF, PNG or JPEG 2000 image{other}")
    found, by_channel = _matched(names, pattern, root)
    if not by_channel:
        made = read_fields(
            root, _fitting(found, pattern, root, left_out), choice, pattern is not None, incomplete, left_out
        )
        return _manifest(made, root, incomplete, left_out)
    chosen = [(n, g) for n, g in _fitting(found, pattern, root, left_out) if g is not None]
    sites = _sites(chosen, root, pattern is not None)
    if has_pages(str(root / chosen[0][0])):
        return _manifest(read_stacks(root, sites, choice, incomplete, left_out), root, incomplete, left_out)
    choice.refuse_unused(f"{root} (one plane in each file)")
    rows = [key_columns(key) | planes for key, planes in sorted(sites.items())]
    channels = sorted({c for planes in sites.values() for c in planes})
    return validated(pd.DataFrame(rows, dtype=object), root, channels, incomplete, left_out=left_out)


def _manifest(made: FieldRows, root: Path, incomplete: str, left_out: Omissions) -> Manifest:
    table = pd.DataFrame(made.rows, dtype=object)
    return validated(table, root, made.channels, incomplete, left_out=left_out, notes=[made.note])


Found = Sequence[tuple[str, Groups | None]]


def _matched(names: list[str], pattern: str | None, root: Path) -> tuple[Found, bool]:
    """Groups of every name, and whether they give the channel; else each file holds all channels of a field."""
    if pattern is not None:
        by_user = list(zip(names, match_user_pattern(pattern, names), strict=True))
        if not any(groups is not None for _, groups in by_user):
            raise CamaeError(
                f"{root}: no image name fits the pattern {pattern!r}, for example {names[0]}: "
                "give a pattern with groups plate, well, site, channel"
            )
        return by_user, "channel" in re.compile(pattern).groupindex
    by_channel = match_builtin(PATTERNS, names)
    others = [n for n, groups in zip(names, by_channel, strict=True) if groups is None]
    fields = dict(zip(others, match_builtin(FIELD_PATTERNS, others), strict=True))
    n_channel, n_field = len(names) - len(others), sum(groups is not None for groups in fields.values())
    if n_channel >= n_field and n_channel:
        found = list(zip(names, by_channel, strict=True))
        words = {str(groups["channel"]) for groups in by_channel if groups}
        # One word where channels stand, and several channels in the file: the word is none.
        first = next(n for n, groups in found if groups)
        return found, len(words) > 1 or not holds_channels(str(root / first))
    if n_field:
        return [(n, fields.get(n)) for n in names], False
    if any(has_pages(str(root / name)) for name in names[:1]):
        return [(n, None) for n in names], False  # OME metadata may say which fields they are
    raise CamaeError(
        f"{root}: no image name fits a known scheme ({', '.join((*PATTERNS, *FIELD_PATTERNS))}), "
        f"for example {names[0]}: give a pattern with groups plate, well, site, channel"
    )


def _fitting(found: Found, pattern: str | None, root: Path, left_out: Omissions) -> Found:
    """Names that fit, the others noted; all of them where none fits, and metadata may say what they show."""
    unfit = [name for name, groups in found if groups is None]
    if len(unfit) == len(found):
        return found
    reason = (
        "the name does not fit the pattern" if pattern else "the name does not fit the scheme of the others"
    )
    if unfit:
        warn_left_out("image", unfit, len(found), root, reason)
    for name in unfit:
        left_out.add("file", name, reason)
    return [(name, groups) for name, groups in found if groups is not None]


def _other_formats(names: list[str], root: Path) -> Omissions:
    left_out = Omissions()
    others = [n for n in names if os.path.splitext(n)[1].lower() in _OTHER_SUFFIXES]
    for name in others:
        left_out.add("file", name, "its image format is not read")
    if others:
        warn_left_out("file", others, len(names), root, "their image format is not read")
    return left_out


def _sites(found: list[tuple[str, Groups]], root: Path, by_user: bool) -> dict[Key, dict[str, str]]:
    """Files of every site by channel. Steps in time and z that no site needs are not told apart."""
    whole = [(site_key(groups, name, root), str(groups["channel"])) for name, groups in found]
    steps = [
        by_user
        or any(n > 1 for n in Counter((key[:4], *_others(key, i), c) for key, c in set(whole)).values())
        for i in (4, 5)
    ]
    if not any(steps) and any(n > 1 for n in Counter((key[:4], c) for key, c in set(whole)).values()):
        steps = [True, True]  # time and z go forward together
    sites: dict[Key, dict[str, str]] = {}
    for (name, _), (key, channel) in zip(found, whole, strict=True):
        site = (*key[:4], key[4] if steps[0] else "", key[5] if steps[1] else "")
        planes = sites.setdefault(site, {})
        if channel in planes:
            raise CamaeError(
                f"{root}: {planes[channel]} and {name} both claim plate {key[1]} well {key[2]} site {key[3]} "
                f"channel {channel}: give a pattern that tells them apart"
            )
        planes[channel] = name
    return sites


def _others(key: Key, i: int) -> tuple[str, ...]:
    """The step that is not the i-th: time beside z, z beside time."""
    return tuple(key[j] for j in (4, 5) if j != i)
