"""Every numbered fault of the list has a test that names its number."""

import re
from pathlib import Path

FAULTS = 37


def test_every_numbered_fault_has_a_test():
    files = (path for path in Path(__file__).parent.rglob("test_*.py"))
    named = {
        int(n)
        for path in files
        for n in re.findall(r"^def test_fault_(\d\d)_", path.read_text(), re.MULTILINE)
    }
    assert named == set(range(1, FAULTS + 1))
