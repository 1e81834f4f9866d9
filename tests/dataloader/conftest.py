"""Small screens on disk and the folder of real images."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

from camae.dataloader import Manifest

# What tifffile and `pack` say of a codec that they lack; tifffile looks for zstd in Python 3.14's `compression`.
_LACKS_A_CODEC = ("imagecodecs", "No module named 'compression'")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    """Where imagecodecs is absent, tests whose files only it can write or check are skipped and say so."""
    try:
        yield
    except (Exception, pytest.fail.Exception) as error:
        told, chain = "", error
        while chain is not None and not told:
            told = next((str(chain) for words in _LACKS_A_CODEC if words in str(chain)), "")
            chain = chain.__cause__ or chain.__context__
        if not told or importlib.util.find_spec("imagecodecs") is not None:
            raise
        pytest.skip(f"needs imagecodecs to write or check its files ({told.splitlines()[0][-120:]})")


@pytest.fixture
def real_images() -> Path:
    """The folder of real microscopy images, or a skip that says why."""
    default = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("CAMAE_TEST_DATA", default)) / "images"
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder} (set CAMAE_TEST_DATA)")
    return folder


@pytest.fixture
def as_nobody(tmp_path: Path) -> Callable[[], AbstractContextManager]:
    """A context without root's right to read everything; the test's own folder can be reached in it."""
    if os.geteuid() != 0:
        return nullcontext
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001 and folder.owner() == "root":
            folder.chmod(0o755)

    @contextmanager
    def without_root() -> Iterator[None]:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)

    return without_root


@pytest.fixture
def screen(tmp_path: Path) -> Manifest:
    """Ten sites of 40x48 uint16; plate P2 (even rows) has DNA and ER, plate P1 DNA, ER and AGP. Pixels are unique."""
    rng = np.random.default_rng(0)
    rows = []
    for site in range(10):
        plate = "P1" if site % 2 else "P2"
        row = {"Metadata_Plate": plate, "Metadata_Well": f"A{site + 1:02d}", "Metadata_Site": "1"}
        for channel in ("DNA", "ER", "AGP"):
            row[channel] = f"img/{site}_{channel}.tif" if channel != "AGP" or site % 2 else ""
            if row[channel]:
                path = tmp_path / row[channel]
                path.parent.mkdir(exist_ok=True)
                tifffile.imwrite(path, rng.integers(0, 65536, (40, 48), dtype=np.uint16))
        rows.append(row)
    return Manifest(pd.DataFrame(rows), tmp_path)
