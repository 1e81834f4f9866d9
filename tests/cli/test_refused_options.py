"""Sentences of refused options that no other test reads."""

import pytest

from camae.cli.options import _numbers
from camae.errors import CamaeError


def test_a_word_among_numbers():
    assert _numbers("layers", ["best"]) == "best"
    assert _numbers("layers", ["1", "3"]) == (1, 3)
    with pytest.raises(CamaeError, match="--layers best: give one word alone, or numbers"):
        _numbers("layers", ["1", "best"])
