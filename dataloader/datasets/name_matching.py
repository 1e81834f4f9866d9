"""Matching of file names with regular expressions; a user's own runs in a process that is ended when it backtracks."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping

from camae.errors import CamaeError

Groups = dict[str, str | None]
SECONDS = 10.0  # for all names of a folder: a sound pattern takes microseconds for each
# One line per name, so that the name at which the time ran out is known.
_MATCHER = """
import json, re, sys
pattern, names = json.load(sys.stdin)
expression = re.compile(pattern)
for name in names:
    match = expression.search(name)
    print(json.dumps(match and match.groupdict()), flush=True)
"""


def match_builtin(patterns: Mapping[str, str], names: list[str]) -> list[Groups | None]:
    """Groups of every name under the pattern that fits most, upper and lower case alike; None where it does not fit."""
    best: list[Groups | None] = [None] * len(names)
    for pattern in patterns.values():
        expression = re.compile(pattern, re.IGNORECASE)
        matches = [expression.search(name) for name in names]
        found = [m.groupdict() if m else None for m in matches]
        if sum(g is not None for g in found) > sum(g is not None for g in best):
            best = found
    return best


def match_user_pattern(pattern: str, names: list[str], seconds: float = SECONDS) -> list[Groups | None]:
    """Groups of every name under one pattern, None where it does not fit.

    Raises CamaeError when it is no regular expression, names no group, or takes longer than `seconds`.
    """
    try:
        expression = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise CamaeError(f"pattern {pattern!r} is not a regular expression: {error}") from error
    if not expression.groupindex:
        raise CamaeError(
            f"pattern {pattern!r} has no group such as (?P<well>...), (?P<site>...) or (?P<channel>...)"
        )
    command = [sys.executable, "-I", "-S", "-c", _MATCHER]
    # Python's matching cannot be interrupted: the process can.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    ) as matcher:
        try:
            out, _ = matcher.communicate(json.dumps([pattern, names]), timeout=seconds)
        except subprocess.TimeoutExpired:
            matcher.kill()
            out, _ = matcher.communicate()
            slow = names[min(out.count("\n"), len(names) - 1)]
            raise CamaeError(
                f"pattern {pattern!r}: takes more than {seconds:g} s, at the name {slow!r}: repeats inside repeats, "
                "as in (a+)+, try every way to split a name; write it without them"
            ) from None
    lines = out.splitlines()
    if len(lines) != len(names):
        raise CamaeError(f"pattern {pattern!r}: could not be matched with the name {names[len(lines)]!r}")
    return [json.loads(line) for line in lines]
