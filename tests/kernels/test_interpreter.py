"""Starts the tests of tests/kernels/interpreted in a process with TRITON_INTERPRET=1."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels need triton, which is installed on Linux only")

FILES = sorted((Path(__file__).parent / "interpreted").glob("test_*.py"))


def _release(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version(package).split(".")[:2])


@pytest.mark.skipif(
    _release("triton") < (3, 7) and _release("numpy") >= (2, 4),
    reason=f"the interpreter of triton {version('triton')} does not run with numpy {version('numpy')}: it makes "
    "numbers of arrays of one element, which numpy refuses from 2.4 on",
)
@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_in_the_interpreter(file):
    command = [sys.executable, "-m", "pytest", str(file), "-q", "-p", "no:cacheprovider", "--no-header"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 0
    assert "skipped" not in done.stdout.splitlines()[-1]
