"""`camae embed` killed at ten random moments: what lies in the shards in the end equals an uninterrupted run."""

import json
import random
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from camae.tables import read_table

pytestmark = pytest.mark.timeout(900)

# The command as users run it, slowed at each site so that a kill meets every part of the work, not only the start.
SLOWED = """
import sys, time
import camae.embedding.shards as shards
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
    arguments = ["embed", screen, "--model", model_file, "--out", out, "--sites-per-shard", "2"]
    return subprocess.Popen(
        [sys.executable, "-c", SLOWED, *map(str, arguments), "--tokens-per-pass", "100"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def wait_for_work(process, out):
    """Until the process has the folder, so that the clock starts at its work, not at its imports."""
    lock = out / ".lock"
    while process.poll() is None and not (lock.exists() and f'"pid": {process.pid},' in lock.read_text()):
        time.sleep(0.01)


@pytest.mark.full
def test_killed_ten_times(long_screen, model_file, tmp_path):
    finished(started(long_screen, model_file, tmp_path / "whole"))
    out, random_ = tmp_path / "killed", random.Random(0)
    kills, shards = 0, []
    while kills < 10:
        process = started(long_screen, model_file, out)
        wait_for_work(process, out)
        time.sleep(random_.uniform(0.0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == 0:
            break
        kills += 1
        shards.append(len(list((out / "sites").glob("part-*.parquet"))))
    assert kills == 10
    assert 0 < shards[-1] < 20, f"the kills met no half-done run: shards after each {shards}"
    finished(started(long_screen, model_file, out))
    names = [p.name for p in sorted((tmp_path / "whole" / "sites").iterdir())]
    assert names == [p.name for p in sorted((out / "sites").iterdir())]
    assert len(names) == 20
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
