"""Freed pages stay with a training process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROBE = """
import resource, sys
import torch
from camae.training.process import keep_freed_pages
if sys.argv[1] == "keep":
    assert keep_freed_pages()
def faults():
    for _ in range(50):
        torch.ones(3_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_pages_are_kept():
    """Fifty tensors of 12 MB, one after the other: no fresh page for any (3,000 of 4 KiB each otherwise)."""
    command = [sys.executable, "-c", PROBE, "keep"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 3000
