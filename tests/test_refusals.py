"""docs/refusals.md: every sentence of its tables is one that the code says."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = re.findall(r"^\| ([^|]+) \| `([^|]+)` \| [^|]*\|$", (ROOT / "docs" / "refusals.md").read_text(), re.M)


def shown(node):
    """Text of a constant or f-string, values as an ellipsis."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    return "".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values)


@cache
def texts():
    """Every text of the package's source, and its C++ as it is."""
    found = []
    for folder in ("camae", "dataloader", "kernels"):
        for path in (ROOT / folder).rglob("*.py"):
            nodes = ast.walk(ast.parse(path.read_text()))
            found += [shown(n) for n in nodes if isinstance(n, ast.Constant | ast.JoinedStr)]
    return "\n".join([*found, *(p.read_text() for p in (ROOT / "csrc").rglob("*.cpp"))])


@pytest.mark.parametrize(("what", "sentence"), ROWS, ids=[what for what, _ in ROWS])
def test_sentences_of_the_page_are_said(what, sentence):
    fragments = [part.strip(" ,:") for part in sentence.split("…") if part.strip(" ,:")]
    assert fragments
    assert [part for part in fragments if part not in texts()] == []


def test_the_page_has_a_row_for_every_kind():
    assert len(ROWS) > 50
