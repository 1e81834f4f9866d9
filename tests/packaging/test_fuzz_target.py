"""The fuzz target of the TIFF reader compiles: it is built by hand (CAMAE_FUZZ), and must not rot between times."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_fuzz_target_compiles():
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None or not (ROOT / "csrc").is_dir():
        pytest.skip("no C++ compiler, or no source tree")
    command = [compiler, "-std=c++17", "-fsyntax-only", "-I", str(ROOT / "csrc")]
    done = subprocess.run(
        [*command, str(ROOT / "csrc" / "reader" / "fuzz_tiff.cpp")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
