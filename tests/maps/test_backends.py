"""Choice of the array library: CuPy where it runs, else NumPy with the reason; cupy asked for in vain is an error."""

import sys
import types

import numpy as np
import pandas as pd
import pytest
from device_arrays import Device, namespace
from typer.testing import CliRunner

import camae.kernels.arrays.backends
from camae import maps
from camae.cli import app
from camae.errors import CamaeError, MissingBackendError
from camae.kernels.arrays.backends import ArrayBackend, array_backend
from camae.reproduction.benchmark.run_benchmark import run_benchmark


class Module(types.ModuleType):
    """A cupy of a machine: with a device or none, that works or fails."""

    __version__ = "14.2.0"

    def __init__(self, devices, failure=None):
        super().__init__("cupy")
        runtime = types.SimpleNamespace(getDeviceProperties=lambda index: {"name": b"NVIDIA H100"})
        device = lambda: types.SimpleNamespace(id=0)  # noqa: E731
        self.cuda = types.SimpleNamespace(is_available=lambda: devices > 0, Device=device, runtime=runtime)
        self.failure = failure

    def ones(self, shape):
        if self.failure:
            raise self.failure
        return namespace.ones(shape)

    def __getattr__(self, name):
        return getattr(namespace, name)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (None, "CuPy is not installed (pip install 'camae[gpu]')"),
        (Module(0), "there is no CUDA device, or its driver is older than CuPy's CUDA (see camae doctor)"),
        (
            Module(1, OSError("libcusolver.so.12\nnot found")),
            "CuPy fails on the CUDA device (libcusolver.so.12)",
        ),
    ],
)
def test_where_cupy_cannot_run_auto_is_numpy_and_cupy_an_error(monkeypatch, module, reason):
    monkeypatch.setitem(sys.modules, "cupy", module)
    chosen = array_backend("auto")
    assert chosen.module is np
    assert str(chosen) == f"numpy ({np.__version__}; cupy cannot run here: {reason})"
    with pytest.raises(MissingBackendError) as caught:
        array_backend("cupy")
    assert str(caught.value) == f"backend cupy cannot run here: {reason}; use backend numpy or auto"
    assert str(array_backend("numpy")) == f"numpy ({np.__version__}, as asked for)"


def test_where_cupy_runs_it_is_taken(monkeypatch):
    module = Module(1)
    monkeypatch.setitem(sys.modules, "cupy", module)
    for backend in ("auto", "cupy"):
        chosen = array_backend(backend)
        assert chosen.module is module
        assert str(chosen) == "cupy (14.2.0 on NVIDIA H100)"
        assert isinstance(chosen.asarray(np.ones(2)), Device)
    assert array_backend(chosen) is chosen
    assert array_backend("numpy").module is np


def test_another_name_is_refused():
    with pytest.raises(CamaeError, match="unknown backend 'gpu'; choose one of auto, numpy, cupy"):
        array_backend("gpu")


def test_a_table_that_the_device_cannot_hold_is_said():
    def asarray(x):
        raise MemoryError("out of memory allocating 64 bytes")

    backend = ArrayBackend("cupy", types.SimpleNamespace(asarray=asarray), "")
    with pytest.raises(
        CamaeError, match=r"table of shape \(4, 2\) .* does not fit .*64 bytes.*use backend numpy"
    ):
        backend.asarray(np.ones((4, 2)))


@pytest.fixture
def screen(tmp_path):
    """Files of a screen of 120 wells and known pairs, both by name."""
    rng = np.random.default_rng(0)
    names = [f"p{i:02d}" for i in range(20)]
    table = pd.DataFrame(rng.normal(size=(120, 6)), columns=[f"emb_{i:04d}" for i in range(6)])
    table.insert(0, "Metadata_Plate", [f"P{i // 60}" for i in range(120)])
    table.insert(1, "Metadata_Well", [f"{'ABCDEFGH'[i % 60 // 10]}{i % 10 + 1:02d}" for i in range(120)])
    table.insert(2, "Metadata_Perturbation", [names[i % 20] for i in range(120)])
    table.insert(3, "Metadata_control_type", ["negcon" if i % 20 < 5 else "" for i in range(120)])
    table.to_parquet(tmp_path / "wells.parquet")
    pairs = pd.DataFrame({"a": names[5:12], "b": names[12:19]})
    pairs.to_csv(tmp_path / "pairs.csv", index=False)
    return tmp_path


@pytest.fixture
def guarded(monkeypatch):
    """CuPy's stand-in as what "auto" finds: every silent move to the host raises."""
    found = namespace, ""
    monkeypatch.setattr(camae.kernels.arrays.backends, "_running_cupy", lambda: found)
    properties = types.SimpleNamespace(getDeviceProperties=lambda index: {"name": b"stand-in"})
    device = lambda: types.SimpleNamespace(id=0)  # noqa: E731
    monkeypatch.setattr(
        namespace, "cuda", types.SimpleNamespace(Device=device, runtime=properties), raising=False
    )


@pytest.mark.filterwarnings("ignore")
def test_map_screen_computes_where_it_is_told(screen, guarded):
    host = maps.map_screen(screen / "wells.parquet")
    assert type(host.vectors) is np.ndarray
    found = maps.map_screen(screen / "wells.parquet", backend="auto")
    np.testing.assert_allclose(found.vectors.get(), host.vectors, atol=1e-9)


@pytest.mark.filterwarnings("ignore")
def test_benchmark_on_the_device_is_that_of_numpy_and_says_so(screen, guarded):
    options = {"null_size": 99}
    files = [screen / "wells.parquet"], screen / "pairs.csv"
    host = run_benchmark(*files, screen / "host", backend="numpy", **options)
    found = run_benchmark(*files, screen / "device", **options)
    assert found.pop("arrays").startswith("cupy (")
    assert host.pop("arrays") == f"numpy ({np.__version__}, as asked for)"
    assert list(found) == list(host)
    for name in ("table2", "table3", "table4"):
        pd.testing.assert_frame_equal(pd.DataFrame(found[name]), pd.DataFrame(host[name]))


@pytest.mark.filterwarnings("ignore")
def test_the_shell_says_which_library_it_takes(screen, guarded):
    def run(*arguments):
        return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "300"})

    command = ["map", screen / "wells.parquet", screen / "pairs.csv", "--out"]
    host = run(*command, screen / "host.csv", "--backend", "numpy")
    found = run(*command, screen / "device.csv")
    assert host.output.startswith("arrays: numpy (")
    assert found.output.startswith("arrays: cupy (")
    assert host.output.count("\n") == found.output.count("\n")
    pd.testing.assert_frame_equal(pd.read_csv(screen / "host.csv"), pd.read_csv(screen / "device.csv"))
    refused = run(*command, screen / "no.csv", "--backend", "gpu")
    assert isinstance(refused.exception, CamaeError)
    assert not (screen / "no.csv").exists()
