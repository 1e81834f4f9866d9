"""Every function of CuPy that maps use exists in the installed CuPy and takes the arguments that it is given.

The calls are those that CuPy's stand-in (device_arrays) notes while every public function of maps runs on it. A GPU is
not needed: CuPy imports without one.
"""

import ast
import inspect
import operator
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from device_arrays import Device, calls, namespace
from map_calls import CALLS, CONTROL, PLATE, X

import camae.maps
from camae import maps
from camae.embedding_table import feature_columns
from camae.kernels import arrays
from camae.kernels.arrays.backends import ArrayBackend
from camae.kernels.arrays.cosine_tails import cosines_of_pairs, order_statistics

SOURCES = [
    *Path(camae.maps.__file__).parent.glob("*.py"),
    *Path(arrays.__file__).parent.rglob("*.py"),
]
KERNELS = {"device_windows.py"}  # runs a CUDA kernel, which the stand-in has not


def device(x):
    return Device(np.array(x))


def run_everything(folder):
    """All of maps on the stand-in, with the sizes that choose among its ways."""
    for call in CALLS.values():
        call(device)
    tiny = X.copy()
    tiny[3] *= 1e-200
    maps.relate(device(tiny))
    maps.aggregate(device(X), PLATE, "mean")
    for kind in ("ZCA-cor", "PCA"):
        maps.align(device(X), "spherize", control=CONTROL, kind=kind)
    few = CONTROL & (np.arange(len(X)) % 20 < 1)  # fewer controls than columns: the low-rank form
    wide = np.random.default_rng(0).normal(size=(len(X), 40))
    maps.TVN().fit(device(wide), PLATE, few).transform(device(wide[:4]), PLATE[:4])
    maps.linear_probe(device(wide[:30]), PLATE[:30], None, standardize=True)
    meta = pd.DataFrame({"pert": np.arange(len(X)) % 2, "label": "a|b", "control": CONTROL})
    for ties in ("expected", "copairs"):  # more than 64 positives
        maps.average_precision(device(X), meta, "pert", [], [], "control", ties=ties, absolute=True)
    for distance in ("correlation", "euclidean"):
        either = {"any": ["pert", "control"]}
        maps.average_precision(device(X), meta, ["pert"], [], either, either, distance=distance)
    label = meta.assign(label=[f"t{i % 7}|t{i % 5}" for i in range(len(X))])
    maps.average_precision(device(X), label, "label", [], [], "label", multilabel="label")
    unit = np.random.default_rng(0).normal(size=(4200, 3))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    order_statistics(device(unit), [100], 1024)  # a window
    order_statistics(device(unit[:300]), list(range(40)), 64)  # bins
    cosines_of_pairs(device(unit), np.arange(9), np.arange(9) + 5, 1024)
    table = pd.DataFrame(X, columns=feature_columns(X.shape[1]))
    table.insert(0, "Metadata_Plate", PLATE)
    table.insert(1, "Metadata_control_type", np.where(CONTROL, "negcon", ""))
    table.to_parquet(folder / "x.parquet")
    backend = ArrayBackend("cupy", namespace, "stand-in")
    maps.align_parquet([folder / "x.parquet"], folder / "out.parquet", maps.TVN(), backend=backend)


@pytest.fixture(scope="module")
def noted(tmp_path_factory):
    """Distinct calls: name -> arguments and keywords of each form seen."""
    calls.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_everything(tmp_path_factory.mktemp("noted"))
    found = {}
    for name, args, kwargs in calls:
        form = (len(args), tuple(sorted(kwargs)), kwargs.get("kind"), kwargs.get("mode"))
        found.setdefault(name, {})[form] = (args, kwargs)
    calls.clear()
    return {name: list(forms.values()) for name, forms in found.items()}


def names_in(paths):
    """Attributes of the array library that the sources name."""
    trees = [node for path in paths for node in ast.walk(ast.parse(path.read_text()))]
    return {node.attr for node in trees if isinstance(node, ast.Attribute) and _is_namespace(node.value)}


def test_every_function_that_the_source_names_is_called(noted):
    named = names_in(path for path in SOURCES if path.name not in KERNELS)
    functions = {
        name for name in named if callable(getattr(np, name)) and not isinstance(getattr(np, name), type)
    }
    assert {"sqrt", "einsum", "asarray", "median", "linalg"} <= named
    assert functions - set(noted) == set()


def _is_namespace(node):
    """Whether an expression is `xp`, `self.xp`, `self._xp` or `namespace(...)`."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "namespace"
    if isinstance(node, ast.Attribute):
        return node.attr in ("xp", "_xp") and isinstance(node.value, ast.Name) and node.value.id == "self"
    return isinstance(node, ast.Name) and node.id == "xp"


def test_no_argument_is_an_array_of_the_host(noted):
    for name, forms in noted.items():
        for args, kwargs in forms if name != "asarray" else []:
            assert not any(isinstance(value, np.ndarray) for value in (*args, *kwargs.values())), name


def test_cupy_has_them_and_takes_the_arguments(noted):
    cupy = pytest.importorskip("cupy", reason="needs CuPy (no GPU)")
    wrong = [f"{name} is missing" for name in names_in(SOURCES) if not hasattr(cupy, name)]
    for name, forms in noted.items():
        owner, _, last = name.rpartition(".")
        function = getattr({"": cupy, "linalg": cupy.linalg, "ndarray": cupy.ndarray}[owner], last, None)
        if function is None:
            wrong.append(f"{name} is missing")
            continue
        for args, kwargs in forms:
            try:
                _bind(cupy, function, args, kwargs)
            except (TypeError, ValueError) as error:
                wrong.append(f"{name}({len(args)} arguments, {', '.join(kwargs)}): {error}")
    assert wrong == []
    assert len(noted) > 40


def _bind(cupy, function, args, kwargs):
    """Raise TypeError where the function of CuPy does not take the arguments."""
    if isinstance(function, cupy.ufunc):
        if len(args) != function.nin or not set(kwargs) <= {"out", "dtype", "casting"}:
            raise TypeError(f"a ufunc of {function.nin} inputs")
        return
    try:
        signature = inspect.signature(function)
    except ValueError:  # compiled: the first line of its docstring is the signature
        text = re.match(r"[\w.]*\((?:self, )?(.*)\)", function.__doc__)[1]
        signature = inspect.signature(eval(f"lambda {text}: None"))
    signature.bind(*args, **kwargs)
    if kwargs.get("kind") not in (None, "stable"):
        raise ValueError("CuPy sorts by kind None or 'stable'")


def test_what_the_backends_and_tensors_ask_of_cupy_is_there():
    cupy = pytest.importorskip("cupy", reason="needs CuPy (no GPU)")
    _bind(cupy, cupy.from_dlpack, (object(),), {})
    inspect.signature(cupy.cuda.ExternalStream.__init__).bind(object(), 77, 0)
    for name in ("Device", "Stream.null", "is_available", "runtime.getDeviceProperties"):
        operator.attrgetter(name)(cupy.cuda)
    assert hasattr(cupy.ndarray, "__dlpack__")
    assert issubclass(cupy.cuda.memory.OutOfMemoryError, MemoryError)


def test_a_wrong_call_is_found():
    cupy = pytest.importorskip("cupy", reason="needs CuPy (no GPU)")
    for function, args, kwargs in [
        (cupy.take_along_axis, (1,), {"axis": 0}),
        (cupy.sqrt, (1,), {"where": True}),
        (cupy.ndarray.sum, (), {"where": True}),
        (cupy.sort, (1,), {"kind": "quicksort"}),
        (cupy.median, (1,), {"method": "linear"}),
    ]:
        with pytest.raises((TypeError, ValueError)):
            _bind(cupy, function, args, kwargs)
