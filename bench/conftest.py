"""Options and fixtures of the bench: `pytest bench/ [--full] [--compare]`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def pytest_addoption(parser):
    group = parser.getgroup("bench")
    group.addoption("--full", action="store_true", help="the sizes of the tables with their competitors")
    group.addoption(
        "--promote",
        action="store_true",
        help="write the rows where a commit makes them this device's baselines",
    )
    group.addoption(
        "--compare", action="store_true", help="fail on a slowdown against the promoted rows of this device"
    )


def pytest_configure(config):
    # Rows are timed side by side by the bench itself; pytest-benchmark's own statistics stay short.
    if hasattr(config.option, "benchmark_columns"):
        config.option.benchmark_columns = ["median", "rounds"]


@pytest.fixture(scope="session")
def recorder(request):
    """Measures, checks and writes rows; on CUDA always at full size."""
    import torch
    from rows import Recorder

    device = "cuda" if torch.cuda.is_available() else "cpu"
    full = request.config.getoption("--full") or device == "cuda"
    rounds = 30 if device == "cuda" else (7 if full else 3)
    promote = request.config.getoption("--promote")
    recorder = Recorder(device, full, request.config.getoption("--compare"), rounds, promote)
    request.config.stash[RECORDER] = recorder
    return recorder


RECORDER: pytest.StashKey = pytest.StashKey()


def pytest_terminal_summary(terminalreporter, config):
    recorder = config.stash.get(RECORDER, None)
    if recorder is None or not recorder.compare:
        return
    from rows import device_name

    name = device_name(recorder.device)
    terminalreporter.write_line(f"compared {recorder.compared} rows with the baselines of {name}")
    if recorder.without_baseline:
        terminalreporter.write_line(
            f"no baseline for {recorder.without_baseline} rows on {name} with these versions and sizes: "
            "run with --promote (or --full) and commit bench/results"
        )


@pytest.fixture(scope="module")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether the sizes of the tables were asked for."""
    return bool(request.config.getoption("--full"))


@pytest.fixture(scope="module")
def screen(full: bool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo screen, or a tiny one."""
    if full and "CAMAE_BENCH_SCREEN" in os.environ:
        return Path(os.environ["CAMAE_BENCH_SCREEN"])
    from camae.reproduction.demo.generate_screen import generate

    size = {} if full else {"plates": 2, "sites": 1, "size": 64}
    return generate(tmp_path_factory.mktemp("screen") / "screen", **size)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs are kept: CAMAE_BENCH_RUNS keeps them, so that a second call continues."""
    return Path(os.environ.get("CAMAE_BENCH_RUNS") or tmp_path_factory.mktemp("runs")).resolve()
