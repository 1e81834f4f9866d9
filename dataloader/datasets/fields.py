"""Fields of a plain folder whose files hold several planes: rows of the manifest from names and metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from camae.dataloader.datasets import stacks
from camae.dataloader.datasets.common import warn_left_out
from camae.dataloader.datasets.name_matching import Groups
from camae.dataloader.datasets.site_keys import Key, key_columns, key_words, plate_folder, site_key
from camae.dataloader.datasets.stacks import Choice
from camae.dataloader.datasets.tiff_axes import ImageAxes, images_in
from camae.errors import CamaeError, MissingBackendError
from camae.omissions import Omissions

_THREADS = 8  # network file systems answer one question slowly and many at once quickly
_NO_KEY = "neither its name nor OME metadata say which field it is"


@dataclass(frozen=True)
class FieldRows:
    """Rows of a manifest, the channels in order, and the line that says what the files hold."""

    rows: list[dict[str, str]]
    channels: list[str]
    note: str


def read_fields(
    root: Path,
    found: Sequence[tuple[str, Groups | None]],
    choice: Choice,
    by_user: bool,
    incomplete: str,
    left_out: Omissions,
) -> FieldRows:
    """Rows of files that each hold all channels of one field, or of several.

    found:      file names and the groups of their names (None where no scheme fits).
    by_user:    the groups are of the user's own pattern, and win over OME plate metadata.
    incomplete: "skip" leaves out files that cannot be read.
    Raises CamaeError for files of different axes or channels, and for what needs a choice that was not made.
    """
    headers = _headers(root, [name for name, _ in found], incomplete, left_out)
    fields: list[tuple[Key, str, ImageAxes]] = []
    unplaced = []
    for name, groups in found:
        images = headers.get(name, [])
        for number, image in enumerate(images, start=1):
            key = _key_of(image, name, groups, root, by_user, number if len(images) > 1 else 0)
            if key is None:
                unplaced.append(name)
            else:
                fields.append((key, name, image))
    if not fields:
        raise CamaeError(
            f"{root}: {(unplaced or [found[0][0]])[0]} does not say which well and site it shows: name files as in "
            "P1_B02_s1.tif, or give a pattern with groups plate, well, site, such as '(?P<site>[^/]+)\\.tif'"
        )
    unplaced = list(dict.fromkeys(unplaced))
    if unplaced:
        warn_left_out("image", unplaced, len(found), root, _NO_KEY)
    for name in unplaced:
        left_out.add("file", name, _NO_KEY)
    known: list[tuple[Key, str, ImageAxes]] = []
    first_path = str(root / fields[0][1])
    for _, name, image in fields:
        stacks.check_axes(fields[0][2], first_path, image, str(root / name))
    for key, name, image in fields:
        stacks.check_order(fields[0][2], first_path, image, str(root / name), choice)
        known.append((key, name, stacks.explained(image, str(root / name), choice)))
        stacks.check_channels(known[0][2], first_path, known[-1][2], str(root / name))
    rows = list(_rows(root, known, choice))
    first = known[0][2]
    images = [image for _, _, image in known]
    return FieldRows(rows, list(first.channels), stacks.summary(len(fields), images, choice))


def read_stacks(
    root: Path, sites: Mapping[Key, Mapping[str, str]], choice: Choice, incomplete: str, left_out: Omissions
) -> FieldRows:
    """Rows of files that each hold one channel of a field, as their names say, with z planes or time points.

    sites: channel -> file name of every site. Raises as read_fields.
    """
    names = [name for planes in sites.values() for name in planes.values()]
    headers = _headers(root, names, incomplete, left_out)
    first: tuple[ImageAxes, str] | None = None
    seen: list[ImageAxes] = []
    rows = []
    for key, planes in sorted(sites.items()):
        at: dict[str, dict[str, str]] = {}
        for channel, name in planes.items():
            path = str(root / name)
            images = headers.get(name, [])
            if len(images) != 1:
                if images:
                    raise CamaeError(f"{path}: holds {len(images)} images where its name is that of one")
                continue
            image = stacks.explained(images[0], path, choice, channel)
            first = first or (image, path)
            seen.append(image)
            stacks.check_axes(*first, image, path)
            for moment in stacks.moments(image, name, choice, path):
                at.setdefault(moment.time, {}).update(moment.planes)
        rows += [key_columns(_at(key, time, root)) | row for time, row in at.items()]
    if first is None:
        raise CamaeError(f"{root}: no image of it can be read")
    channels = sorted({channel for planes in sites.values() for channel in planes})
    return FieldRows(rows, channels, stacks.summary(len(sites), seen, choice))


def _headers(
    root: Path, names: Sequence[str], incomplete: str, left_out: Omissions
) -> dict[str, list[ImageAxes]]:
    """Images of every file. Files that cannot be read are left out when incomplete="skip"; when it is "keep", they are
    taken for files like the others, so that a check of the screen finds them.
    """

    def look(name: str) -> list[ImageAxes] | CamaeError:
        try:
            return images_in(str(root / name))
        except CamaeError as error:
            return error

    headers: dict[str, list[ImageAxes]] = {}
    bad: dict[str, CamaeError] = {}
    with ThreadPoolExecutor(_THREADS, "camae-headers") as pool:
        for name, header in zip(names, pool.map(look, names), strict=True):
            if isinstance(header, MissingBackendError):
                raise header
            if isinstance(header, CamaeError):
                bad[name] = header
            else:
                headers[name] = header
    likely = next((images for images in headers.values() if len(images) == 1), None)
    if bad and incomplete == "keep" and likely:
        return headers | {name: [replace(likely[0], field=None)] for name in bad}
    if bad and incomplete != "skip":
        error = next(iter(bad.values()))
        raise type(error)(f"{error}; pass incomplete='skip' (--incomplete skip) to leave it out")
    if bad:
        warn_left_out("image", list(bad), len(names), root, "they cannot be read")
    for name in bad:
        left_out.add("file", name, "it cannot be read")
    return headers


def _key_of(
    image: ImageAxes, name: str, groups: Groups | None, root: Path, by_user: bool, number: int
) -> Key | None:
    """Key of a field: by the user's pattern, else by OME plate metadata, else by a known scheme of names."""
    if image.field is not None and not (by_user and groups is not None):
        plate, well, site = image.field
        return "", plate or plate_folder(name, root), well, site, "", ""
    if groups is None:
        return None
    key = site_key(groups, name, root)
    if not number:
        return key
    # Several images in one file are fields of what its name says.
    site = f"{key[3]}.{number}" if groups.get("site") else str(number)
    return (*key[:3], site, *key[4:])


def _rows(
    root: Path, fields: Sequence[tuple[Key, str, ImageAxes]], choice: Choice
) -> Iterator[dict[str, str]]:
    claimed: dict[Key, str] = {}
    for key, name, image in sorted(fields, key=lambda field: field[:2]):
        for moment in stacks.moments(image, name, choice, str(root / name)):
            place = _at(key, moment.time, root)
            if place in claimed:
                raise CamaeError(
                    f"{root}: {claimed[place]} and {name} both claim {key_words(place)}: "
                    "give a pattern that tells them apart"
                )
            claimed[place] = name
            yield key_columns(place) | moment.planes


def _at(key: Key, time: str, root: Path) -> Key:
    """Key with the number of a time point. Raises CamaeError where the file's name gives one too."""
    if time and key[4]:
        raise CamaeError(
            f"{root}: file names give time points ({key_words(key)}), and the files hold several: choose one by time= "
            "(--time)"
        )
    return (*key[:4], time or key[4], key[5])
