"""Shared fixtures: a small real screen on disk, and where real images are."""

import importlib.util
import os
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

BENCH = Path(__file__).parents[1] / "bench"
DEFAULT_DATA = Path(__file__).parents[2] / "shared" / "data"


def pytest_configure():
    """Signals as in a terminal: under nohup or in the background SIGHUP and SIGINT are ignored, by children too."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def real_data():
    """Folder of real microscopy images; tests are skipped, and say so, when it is absent."""
    folder = Path(os.environ.get("CAMAE_TEST_DATA", DEFAULT_DATA))
    if not (folder / "images").is_dir():
        pytest.skip(f"real images are absent: set CAMAE_TEST_DATA (looked in {folder})")
    return folder


@pytest.fixture(scope="session")
def bench_module():
    """bench_module("floors"): a module of bench/, which is no package."""
    sys.path.insert(0, str(BENCH))
    yield load_bench_module
    sys.path.remove(str(BENCH))


def load_bench_module(name):
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def screen(tmp_path):
    """Write 2 plates x 4 wells x 1 site of 48-px uint16 TIFFs and return the manifest path."""
    return write_screen(tmp_path / "screen")


@pytest.fixture
def make_screen(tmp_path):
    """make_screen(name, channels=..., plates=..., ...): write another screen, return its manifest path."""
    return lambda name, **options: write_screen(tmp_path / name, **options)


def write_screen(folder, channels=("DNA", "ER", "Mito"), plates=2, wells=4, size=48, seed=0):
    """A manifest CSV and its TIFFs: smooth blobs, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    grid = np.mgrid[:size, :size]
    rows = []
    folder.mkdir(parents=True)
    for p in range(plates):
        for w in range(wells):
            well = f"A{w + 1:02d}"
            row = {
                "Metadata_Batch": "B1",
                "Metadata_Plate": f"P{p + 1}",
                "Metadata_Well": well,
                "Metadata_Site": "1",
                "Metadata_Perturbation": "DMSO" if w % 2 else f"gene{w}",
                "Metadata_control_type": "negcon" if w % 2 else "",
            }
            for channel in channels:
                center, width = rng.uniform(10, size - 10, 2), rng.uniform(4, 9)
                blob = np.exp(-((grid - center[:, None, None]) ** 2).sum(0) / (2 * width**2))
                plane = 800 + 4000 * blob + rng.normal(0, 40, (size, size))
                name = f"P{p + 1}_{well}_{channel}.tif"
                tifffile.imwrite(folder / name, plane.clip(0).astype(np.uint16))
                row[channel] = name
            rows.append(row)
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"
