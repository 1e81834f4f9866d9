"""Real tables (never committed) and the reference packages of the parity tests."""

import os
import sys
import types
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = Path(
        os.environ.get("CAMAE_TEST_DATA", Path(__file__).parents[2] / ".." / "shared" / "data")
    ).resolve()
    if not (folder / "profiles").is_dir():
        pytest.skip(f"no real tables at {folder}; set CAMAE_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def efaar():
    """The installed efaar-benchmarking package, as a black box.

    It imports scvi-tools, which none of the functions compared here use; an empty stand-in is enough, and keeps
    its large dependency tree out of the test environment.
    """
    if "scvi" not in sys.modules:
        scvi, model = types.ModuleType("scvi"), types.ModuleType("scvi.model")
        model.SCVI = None  # type: ignore[attr-defined]
        sys.modules.update({"scvi": scvi, "scvi.model": model})
    pytest.importorskip("efaar_benchmarking", reason="efaar-benchmarking is a test-only reference")
    from efaar_benchmarking import benchmarking, efaar

    return types.SimpleNamespace(align=efaar, benchmark=benchmarking)
