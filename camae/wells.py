"""Identity of wells and sites: the columns that say which one a row is of, and the one spelling of their cells.

Wells are "A01" to "AF48", of the many spellings of instruments and spreadsheets.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping

PLATE = ("Metadata_Source", "Metadata_Batch", "Metadata_Plate")
WELL = (*PLATE, "Metadata_Well")
TIME = ("Metadata_Time", "Metadata_Timepoint", "Metadata_TimePoint", "Metadata_T")
DEPTH = ("Metadata_Z", "Metadata_ZPlane", "Metadata_Plane")
SITE = (*WELL, "Metadata_Site", *TIME, *DEPTH)
_KNOWN = {name.lower(): name for name in (*SITE, "Metadata_Perturbation", "Metadata_control_type")}

# A 1,536-well plate has rows A to AF and columns 1 to 48.
ROWS, COLUMNS = 32, 48
_LETTERS = re.compile(r"([A-Za-z]{1,2})[ _\-]?0*([1-9]\d?)")
_NUMBER = re.compile(r"0*([0-9]+)(\.0+)?")
_NUMBERS = re.compile(r"[Rr]0*([1-9]\d?)[ _\-]?[Cc]0*([1-9]\d?)")


def row_name(number: int) -> str:
    """Letters of a plate's row, counted from 1: 1 is "A", 27 is "AA"."""
    return chr(ord("A") + number - 1) if number <= 26 else "A" + chr(ord("A") + number - 27)


def row_number(letters: str) -> int:
    """Row of a plate from its letters, counted from 1: "A" is 1, "AA" is 27."""
    number = 0
    for letter in letters.upper():
        number = 26 * number + ord(letter) - ord("A") + 1
    return number


def normal_well(text: str) -> str:
    """Well name in the one spelling: "a1", "A001", "A-1", "r01c01" are "A01"; up to "AF48".

    Anything that names no well of a 1,536-well plate comes back as it is, without blanks around it.
    """
    text = text.strip()
    if match := _LETTERS.fullmatch(text):
        row, column = row_number(match[1]), int(match[2])
    elif match := _NUMBERS.fullmatch(text):
        row, column = int(match[1]), int(match[2])
    else:
        return text
    return f"{row_name(row)}{column:02d}" if row <= ROWS and column <= COLUMNS else text


def normal_site(text: str) -> str:
    """Number of a site, time point or z plane in the one spelling: "01" and "1.0" are "1"; other names stay."""
    text = normal_name(text)
    match = _NUMBER.fullmatch(text)
    return match[1] if match else text


def normal_name(text: str) -> str:
    """Name without blanks around it, its accents composed (NFC): macOS writes names of files decomposed."""
    text = text.strip()
    return text if text.isascii() else unicodedata.normalize("NFC", text)


_SPELLINGS: Mapping[str, Callable[[str], str]] = {
    "Metadata_Well": normal_well,
    **dict.fromkeys(("Metadata_Site", *TIME, *DEPTH), normal_site),
}


def spelling(column: str) -> Callable[[str], str]:
    """What brings the cells of a metadata column into their one spelling."""
    return _SPELLINGS.get(column, normal_name)


def known_column(name: str) -> str:
    """Column of identity in its one spelling ("metadata_well" is "Metadata_Well"); another name as it is."""
    return _KNOWN.get(name.lower(), name)


def spelled(cells: Iterable[str], column: str) -> list[str]:
    """Cells of a metadata column in their one spelling; what is no text (a missing cell) stays."""
    one = spelling(column)
    found: dict[object, str] = {}
    return [
        found[cell] if cell in found else found.setdefault(cell, one(cell)) if isinstance(cell, str) else cell
        for cell in cells
    ]
