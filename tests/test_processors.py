"""Usable CPUs: the least of the machine's, those bound, and the quotas of control groups."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from camae import processors


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """machine(cpus, bound, own, files): a machine, the process's control groups, and their files."""

    def make(cpus=64, bound=64, own="0::/a/b\n", files=()):
        monkeypatch.setattr(os, "cpu_count", lambda: cpus)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(bound)))
        (tmp_path / "own").write_text(own)
        root = tmp_path / "cgroup"
        for name, text in dict(files).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        monkeypatch.setattr(processors, "_CGROUPS", root)
        monkeypatch.setattr(processors, "_OWN_CGROUPS", tmp_path / "own")

    return make


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, 64),
        ({"bound": 3}, 3),
        ({"files": {"a/b/cpu.max": "200000 100000"}}, 2),
        ({"files": {"a/b/cpu.max": "150000 100000"}}, 2),
        ({"files": {"a/b/cpu.max": "max 100000", "a/cpu.max": "400000 100000"}}, 4),  # a group above
        ({"files": {"a/b/cpu.max": "10000 100000"}}, 1),
        ({"files": {"a/b/cpu.max": "nonsense"}}, 64),
        ({"own": "4:cpu,cpuacct:/d\n1:memory:/d\n", "files": {"cpu/d/cpu.cfs_quota_us": "-1"}}, 64),
        (
            {
                "own": "4:cpu,cpuacct:/d\n",
                "files": {"cpu/d/cpu.cfs_quota_us": "500000", "cpu/d/cpu.cfs_period_us": "100000"},
            },
            5,
        ),
        ({"bound": 3, "files": {"a/b/cpu.max": "800000 100000"}}, 3),
    ],
)
def test_the_least_of_all_limits(machine, given, expected):
    machine(**given)
    assert processors.usable_cpus() == expected


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        ({"files": {"a/b/cpu.max": "200000 100000"}}, {}, "2"),
        ({"files": {"a/b/cpu.max": "200000 100000"}}, {"OMP_NUM_THREADS": "7"}, "7"),  # the user's word
        ({"bound": 3}, {}, None),  # OpenMP counts those itself
        ({}, {}, None),
    ],
)
def test_threads_are_limited_where_nothing_else_does(machine, given, environment, expected):
    machine(**given)
    processors.limit_threads(environment)
    assert environment.get("OMP_NUM_THREADS") == expected


def test_the_command_line_keeps_torch_to_the_usable_cpus():
    """In a process of its own: torch takes what the command line leaves in the environment."""
    script = (
        "import os; os.environ.pop('OMP_NUM_THREADS', None)\n"
        "from camae import processors\n"
        "processors.usable_cpus = lambda: 1\n"
        "os.cpu_count, os.sched_getaffinity = (lambda: 8), (lambda _: range(8))\n"
        "processors.limit_threads(os.environ)\n"
        "import torch; print(torch.get_num_threads())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "processor\t: 0\nmodel name\t: AMD EPYC 9454 48-Core Processor\nmodel name\t: other\n",
            "AMD EPYC 9454 48-Core Processor",
        ),
        ("processor\t: 0\nBogoMIPS\t: 50\n", "aarch64"),
    ],
)
def test_the_processor_by_name(monkeypatch, tmp_path, text, expected):
    monkeypatch.setattr(processors, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(processors.platform, "processor", lambda: "")
    monkeypatch.setattr(processors.platform, "machine", lambda: "aarch64")
    (tmp_path / "cpuinfo").write_text(text)
    assert processors.cpu_model() == expected
