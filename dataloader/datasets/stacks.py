"""Fields of files with several planes: which page is which channel, and the choice of z planes and time points."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from camae.dataloader.backends.addresses import PROJECTIONS, plane_address
from camae.dataloader.datasets.tiff_axes import ImageAxes
from camae.errors import CamaeError

EACH = "each"


@dataclass(frozen=True)
class Choice:
    """Choice of planes along z and time, and names of channels.

    z:        "max", "mean" or the number of a plane, counted from 0; None only where there is one.
    time:     "each" (every time point a site of its own, Metadata_Time) or a number, counted from 0.
    channels: names of the channels of every file, in its order; names that a file has itself only choose among them.
    rename:   whether `channels` are also given to files that name theirs.
    Raises CamaeError for other words.
    """

    z: str | None = None
    time: str | None = None
    channels: tuple[str, ...] = ()
    rename: bool = True

    @classmethod
    def of(
        cls, z: int | str | None, time: int | str | None, channels: Sequence[str] | None, rename: bool = True
    ) -> Choice:
        """Choice from the forms in which users give it."""
        for name, value, words in (("z", z, PROJECTIONS), ("time", time, (EACH,))):
            if (
                value is not None
                and str(value) not in words
                and not (str(value).isascii() and str(value).isdecimal())
            ):
                raise CamaeError(
                    f"{name}={value!r}: give {' or '.join(map(repr, words))}, or a number counted from 0"
                )
        names = channel_names_of(channels)
        if (twice := next((n for n in names if names.count(n) > 1), None)) is not None:
            raise CamaeError(f"channels {', '.join(names)}: the name {twice!r} stands twice")
        return cls(None if z is None else str(z), None if time is None else str(time), names, rename)

    def refuse_unused(self, data: object) -> None:
        """Raise CamaeError where z or time was given for data whose planes are named one by one."""
        for name, value in (("z", self.z), ("time", self.time)):
            if value is not None:
                raise CamaeError(
                    f"{name}={value!r}: chooses among the planes of image files in a folder, and {data} names its "
                    "planes one by one: leave it out"
                )


def channel_names_of(channels: Sequence[str] | None) -> tuple[str, ...]:
    """Names of channels, () for None. Raises CamaeError for what is no list of names."""
    if channels is None:
        return ()
    names = (channels,) if isinstance(channels, str) else tuple(channels)
    if isinstance(channels, str) or not names:
        raise CamaeError(f"channels={channels!r}: give a list of names, such as ['DNA', 'ER']")
    wrong = next((n for n in names if not isinstance(n, str) or not n or n != n.strip()), None)
    if wrong is not None:
        raise CamaeError(f"channels={list(names)}: {wrong!r} is no name of a channel")
    return names


class Moment(NamedTuple):
    """One time point of a field: its number ("" where there is one, or one was chosen) and channel -> address."""

    time: str
    planes: dict[str, str]


def explained(image: ImageAxes, path: str, choice: Choice, channel: str | None = None) -> ImageAxes:
    """Image with every page explained and every channel named.

    channel: name of the one channel, where the file's name gives it.
    Raises CamaeError with what to pass for pages or channels that nothing explains.
    """
    named = (channel,) if channel is not None else choice.channels
    if not image.explained:
        image = _explained_pages(image, path, choice, named)
    if channel is not None:
        if len(image.channels) > 1:
            raise CamaeError(
                f"{path}: holds {len(image.channels)} channels, and its name was read as that of the channel "
                f"{channel}: give a pattern without the group channel"
            )
        return replace(image, channels=named)
    by_file = all(image.channels) and (not choice.rename or set(named) <= set(image.channels))
    if by_file or not named:
        return _named_by_file(image, path)
    if set(named) & set(image.channels):
        own = ", ".join(c or "(no name)" for c in image.channels)
        raise CamaeError(
            f"{path}: names its channels {own}, and {', '.join(named)} were named: "
            "give names that it has, or other names for all, in the file's order"
        )
    if len(named) != len(image.channels):
        raise CamaeError(
            f"{path}: holds {_count(len(image.channels), 'channel')}{_listed(image)}, and the names given "
            f"are {len(named)} ({', '.join(named)}): name each, in the file's order"
        )
    return replace(image, channels=named)


def _named_by_file(image: ImageAxes, path: str) -> ImageAxes:
    n = len(image.channels)
    if not all(image.channels):
        which = "it" if n == 1 else "all of them"
        advice = ", or give a pattern with a group channel" if n == 1 else ", in the file's order"
        raise CamaeError(
            f"{path}: holds {_count(n, 'channel')} (axes {image.axes}) and does not name {which}: pass channels=[...] "
            f"(--channels DNA,GFP){advice}"
        )
    twice = next((n for n in image.channels if image.channels.count(n) > 1), None)
    if twice is not None:
        raise CamaeError(
            f"{path}: names two channels {twice!r}: pass other names by channels=[...] (--channels)"
        )
    return image


def _explained_pages(image: ImageAxes, path: str, choice: Choice, named: Sequence[str]) -> ImageAxes:
    """Pages without metadata: channels where as many are named; z or time where one channel and a choice are."""
    n = len(image.channels)
    if len(named) == n:
        return replace(image, axes="CYX")
    if len(named) == 1 and (choice.z is None) != (choice.time is None):
        numbers = image.pages_TCZ.reshape((1, 1, n) if choice.z is not None else (n, 1, 1))
        return replace(
            image, axes="ZYX" if choice.z is not None else "TYX", pages_TCZ=numbers, channels=("",)
        )
    if not named:
        raise CamaeError(
            f"{path}: holds {n} pages and does not say what they are: pass channels=[...] (--channels) with {n} "
            "names, or with one name and z= (--z) or time= (--time)"
        )
    raise CamaeError(
        f"{path}: holds {n} pages without metadata, and {len(named)} of its channels named ({', '.join(named)}): name"
        " one for each page, or one and z= (--z) or time= (--time)"
    )


def moments(image: ImageAxes, file: str, choice: Choice, path: str) -> list[Moment]:
    """Time points of a field, each with the address of every channel's plane or projection.

    image: as `explained` returns it. file: its name in addresses. path: in messages.
    Raises CamaeError for several z planes or time points without a choice, or a number that there is not.
    """
    n_T, _, n_Z = image.pages_TCZ.shape
    if (n_Z > 1 and choice.z is None) or (n_T > 1 and choice.time is None):
        raise CamaeError(_undecided(image, path, choice))
    z = _number(choice.z, n_Z, "z plane", path)
    time = _number(choice.time, n_T, "time point", path)
    chosen = range(n_T) if time is None else [time]
    found = []
    for t in chosen:
        planes = {}
        for name, pages_Z in zip(image.channels, image.pages_TCZ[t], strict=True):
            pages = [str(page) for page in pages_Z] if z is None else [str(pages_Z[z])]
            how = str(choice.z) if z is None and len(pages) > 1 else ""
            planes[name] = file if image.is_page else plane_address(file, pages, how)
        found.append(Moment(str(t) if time is None and n_T > 1 else "", planes))
    return found


def _number(text: str | None, n: int, what: str, path: str) -> int | None:
    if text is None or not text.isdecimal():
        return None
    if int(text) >= n:
        raise CamaeError(f"{path}: has no {what} {text}: it has {n}, counted from 0")
    return int(text)


def _undecided(image: ImageAxes, path: str, choice: Choice) -> str:
    n_T, _, n_Z = image.pages_TCZ.shape
    sizes, advice = [], []
    if n_T > 1:
        sizes.append(f"{n_T} time points")
        if choice.time is None:
            advice.append("time='each' or a number (--time)")
    if n_Z > 1:
        sizes.append(f"{n_Z} z planes")
        if choice.z is None:
            advice.append("z='max', 'mean' or a number (--z)")
    return f"{path}: has the axes {image.axes}, with {' and '.join(sizes)}: pass {' and '.join(advice)}"


def check_axes(first: ImageAxes, first_path: str, other: ImageAxes, path: str) -> None:
    """Raise CamaeError naming two files whose axes are not the same."""
    if first.axes != other.axes:
        raise CamaeError(
            f"{first_path} has the axes {first.axes} and {path} has {other.axes}: the fields of a folder have the same "
            "axes, put them into folders of their own"
        )


def check_channels(first: ImageAxes, first_path: str, other: ImageAxes, path: str) -> None:
    """Raise CamaeError naming two files whose channels, as `explained` names them, are not the same in any order."""
    if sorted(first.channels) != sorted(other.channels):
        mine, its = (", ".join(image.channels) for image in (first, other))
        raise CamaeError(
            f"{first_path} has the channels {mine} and {path} has {its}: the fields of a folder have the same "
            "channels, put them into folders of their own, or name them all by channels=[...] (--channels)"
        )


def check_order(first: ImageAxes, first_path: str, other: ImageAxes, path: str, choice: Choice) -> None:
    """Raise CamaeError where two files name the same channels in other orders, and other names for them are given.

    The names go by the files' order, so that one name would be of two channels. first, other: as the files have them.
    """
    mine, its = first.channels, other.channels
    new = choice.rename and choice.channels and not set(choice.channels) <= set(mine)
    if new and all(mine) and mine != its and set(mine) == set(its):
        raise CamaeError(
            f"{first_path} holds the channels {', '.join(mine)} and {path} {', '.join(its)}, and the names "
            f"{', '.join(choice.channels)} go by the files' order: leave the names out, and the files' own are taken"
        )


def summary(n: int, images: Sequence[ImageAxes], choice: Choice) -> str:
    """One line on the fields of a folder: "96 fields, 2 channels in each file (DNA, GFP), axes CYX"."""
    image = images[0]
    n_T, n_C, n_Z = image.pages_TCZ.shape
    steps = []
    if n_Z > 1:
        what = {"max": "maximum over", "mean": "mean over"}.get(str(choice.z), f"plane {choice.z} of")
        steps.append(f"{what} {_range(image.pages_TCZ.shape[2] for image in images)} z planes")
    if n_T > 1:
        counts = _range(image.pages_TCZ.shape[0] for image in images)
        steps.append("every time point" if choice.time == EACH else f"time point {choice.time} of {counts}")
    return ", ".join(
        [
            _count(n, "field"),
            f"{_count(n_C, 'channel')} in each file ({', '.join(image.channels)})",
            f"axes {image.axes}",
            *steps,
        ]
    )


def _range(counts: Iterable[int]) -> str:
    """ "3", or "2 to 5" where files differ."""
    found = sorted(set(counts))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _listed(image: ImageAxes) -> str:
    return f" ({', '.join(image.channels)})" if all(image.channels) else ""
