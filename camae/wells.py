"""Well names: the one spelling, "A01" to "AF48", of the many that instruments and spreadsheets write."""

from __future__ import annotations

import re

# A 1,536-well plate has rows A to AF and columns 1 to 48.
ROWS, COLUMNS = 32, 48
_LETTERS = re.compile(r"([A-Za-z]{1,2})[ _\-]?0*([1-9]\d?)")
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
