"""Sentences of refused options that no other test reads."""

import pytest
from shell_commands import one_sentence

from camae.cli.options import _numbers
from camae.errors import CamaeError


def test_a_word_among_numbers():
    assert _numbers("layers", ["best"]) == "best"
    assert _numbers("layers", ["1", "3"]) == (1, 3)
    with pytest.raises(CamaeError, match="--layers best: give one word alone, or numbers"):
        _numbers("layers", ["1", "best"])


def test_one_argument_where_two_are_needed(shell, profiles):
    one_sentence(
        shell("map", profiles()), "profiles and pairs are needed, in this order, and one argument is given"
    )
    code, _, errors = shell("map")
    assert code == 2
    assert "Missing argument" in errors
