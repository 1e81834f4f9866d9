"""`camae embed` killed at ten random moments: what lies in the shards in the end equals an uninterrupted run."""

import json
import random
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from camae.embedding_table import read_table

pytestmark = pytest.mark.timeout(900)

# The command as users run it, slowed at each site so that a kill meets every part of the work, not only the start.
SLOWED = """
import sys, time
import camae.embedding.worker as shards
original = shards.read_site
def slow(*args, **options):
    time.sleep(0.05)
    return original(*args, **options)
shards.read_site = slow
sys.argv = ["camae", *sys.argv[1:]]
from camae.cli import main
main()
"""


def started(screen, model_file, out):
    arguments = ["embed", screen, "--model", model_file, "--out", out, "--sites-per-shard", "1"]
    return subprocess.Popen(
        [sys.executable, "-c", SLOWED, *map(str, arguments), "--tokens-per-pass", "100"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def shards_in(out):
    return sorted(p.name for p in (out / "sites").glob("part-*.parquet"))


def wait_for_work(process, out, shards):
    """Until the process has the folder and so many shards, so that kills meet its work, not its imports."""
    lock = out / ".lock"
    while process.poll() is None:
        if lock.exists() and f'"pid": {process.pid},' in lock.read_text() and len(shards_in(out)) >= shards:
            return
        time.sleep(0.01)


@pytest.mark.full
def test_killed_ten_times(long_screen, model_file, tmp_path):
    finished(started(long_screen, model_file, tmp_path / "whole"))
    out, random_ = tmp_path / "killed", random.Random(0)
    after_each = []
    for _ in range(10):
        process = started(long_screen, model_file, out)
        wait_for_work(process, out, len(shards_in(out)) + random_.randint(0, 1))
        time.sleep(random_.uniform(0.0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        after_each.append(len(shards_in(out)))
    assert 0 < after_each[-1] < 40, f"the kills met no half-done run: shards after each {after_each}"
    finished(started(long_screen, model_file, out))
    names = shards_in(out)
    assert names == sorted(p.name for p in (out / "sites").iterdir()), "files of killed writes are left"
    assert names == shards_in(tmp_path / "whole")
    assert len(names) == 40
    for name in [f"sites/{n}" for n in names] + ["wells.parquet"]:
        table, about = read_table(out / name)
        expected, expected_about = read_table(tmp_path / "whole" / name)
        pd.testing.assert_frame_equal(table, expected, check_exact=True)
        assert about == expected_about
    rows = pd.concat([read_table(out / "sites" / n)[0] for n in names])
    keys = rows[["Metadata_Plate", "Metadata_Well", "Metadata_Site"]]
    assert len(rows) == 40
    assert not keys.duplicated().any()
    assert json.loads((out / "ledger.json").read_text())["tokens_per_pass"] == 100
