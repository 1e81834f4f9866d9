"""One code for NumPy and CuPy: every function runs on arrays that refuse to become NumPy arrays by themselves.

`Device` (tests/support/device_arrays.py) stands for a CuPy array. On a machine with a GPU the same calls run with CuPy.
"""

import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from device_arrays import Device

from camae import maps
from camae.kernels.arrays.cosine_tails import cosines_of_pairs, order_statistics


def _cupy():
    cupy = pytest.importorskip("cupy", reason="needs CuPy")
    if not cupy.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return cupy


@pytest.fixture(params=["guarded", pytest.param("cupy", marks=pytest.mark.gpu)])
def to_device(request):
    return (lambda x: Device(np.array(x))) if request.param == "guarded" else _cupy().asarray


@pytest.fixture
def screen():
    rng = np.random.default_rng(0)
    pert = np.array([f"p{i:02d}" for i in np.arange(180) % 30], dtype="U8")
    pert[:40] = "DMSO"
    meta = pd.DataFrame({"pert": pert, "plate": [f"P{i}" for i in rng.integers(0, 2, 180)], "target": "a|b"})
    meta["target"] = [f"t{i % 7}|t{i % 5}" for i in range(180)]
    meta["control"] = pert == "DMSO"
    x = rng.normal(size=(180, 9)) + rng.normal(size=(31, 9))[pd.factorize(pert)[0]]
    return x, meta


def _same(device, host, tolerance=1e-10):
    got = device.get()
    assert type(got) is np.ndarray
    np.testing.assert_allclose(got, host, rtol=0, atol=tolerance)


@pytest.mark.parametrize("method", maps.METHODS)
def test_alignment_stays_on_the_device(screen, to_device, method, tmp_path):
    x, meta = screen
    control = meta.control.to_numpy()
    arguments = (method, None if method == "spherize" else meta.plate, control)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        of = {"perturbation": meta.pert}
        _same(maps.align(to_device(x), *arguments, **of), maps.align(x, *arguments, **of), 1e-8)
        if method == "tvn":
            few = control & (np.arange(180) % 4 == 0)  # fewer controls than columns: the low-rank form
            aligner = maps.TVN().fit(to_device(x), meta.plate, few)
            host = maps.TVN().fit(x, meta.plate, few).transform(x, meta.plate)
            _same(aligner.transform(to_device(x), meta.plate), host, 1e-8)
            loaded = maps.load_aligner(maps.save_aligner(aligner, tmp_path))
            _same(loaded.transform(to_device(x[:4]), meta.plate[:4]), host[:4], 1e-8)


def test_maps_stay_on_the_device(screen, to_device):
    x, meta = screen
    for method in ("mean", "median", "spherical_mean"):
        v = maps.aggregate(to_device(x), meta.pert, method, control=meta.control.to_numpy())
        host = maps.aggregate(x, meta.pert, method, control=meta.control.to_numpy())
        _same(v, host)
    _same(maps.relate(v), maps.relate(host))
    names = maps.perturbation_names(meta.pert)
    pairs = [(names[i], names[(7 * i + 3) % 31]) for i in range(31)]
    for function, options in [
        (maps.recall, {"interval": True}),
        (maps.recall_curve, {}),
    ]:
        pd.testing.assert_frame_equal(
            function(v, names, pairs, **options), function(host, names, pairs, **options)
        )
    assert maps.recall_at_fpr(v, names, pairs) == pytest.approx(maps.recall_at_fpr(host, names, pairs))
    assert maps.pooled_recall([v], names, pairs) == maps.pooled_recall([host], names, pairs)
    pd.testing.assert_frame_equal(maps.strongest(v, names, 9), maps.strongest(host, names, 9))
    arms = {name: f"chr{i % 3}p" for i, name in enumerate(names)}
    zfpkm = dict.fromkeys(names.tolist(), -4.0)
    _same(
        maps.correct_arms(v, names, arms, zfpkm, more_than=5),
        maps.correct_arms(host, names, arms, zfpkm, more_than=5),
    )
    pd.testing.assert_frame_equal(maps.arm_bias(v, names, arms), maps.arm_bias(host, names, arms), atol=1e-3)
    screen = (meta.pert, meta.plate, meta.control.to_numpy())
    _same(maps.map_profiles(to_device(x), *screen).vectors, maps.map_profiles(x, *screen).vectors, 1e-8)


def test_scores_stay_on_the_device(screen, to_device):
    x, meta = screen
    v = to_device(x)
    rules = ("pert", [], "plate", "control")
    for ties in ("expected", "copairs"):
        pd.testing.assert_frame_equal(
            maps.retrieval(v, meta, *rules, 200, ties=ties), maps.retrieval(x, meta, *rules, 200, ties=ties)
        )
    siblings = ("target", ["plate"], [], "target")
    options = {"absolute": True, "multilabel": "target"}
    pd.testing.assert_frame_equal(
        maps.average_precision(v, meta, *siblings, **options),
        maps.average_precision(x, meta, *siblings, **options),
    )
    pd.testing.assert_frame_equal(maps.consistency(v, meta.pert), maps.consistency(x, meta.pert))
    control = meta.control.to_numpy()
    pd.testing.assert_frame_equal(
        maps.magnitude(v, meta.pert, control), maps.magnitude(x, meta.pert, control)
    )
    y = np.random.default_rng(1).normal(size=(180, 4))
    names = [f"Cells_Texture_{i}" for i in range(4)]
    pd.testing.assert_frame_equal(
        maps.feature_regression(v, to_device(y), v, to_device(y), names),
        maps.feature_regression(x, y, x, y, names),
    )
    assert maps.linear_probe(v, meta.pert, meta.plate) == maps.linear_probe(x, meta.pert, meta.plate)
    assert maps.nearest_neighbor(v, meta.pert) == maps.nearest_neighbor(x, meta.pert)


def test_order_statistics_stay_on_the_device(to_device):
    x = np.random.default_rng(0).normal(size=(90, 6))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    left, right = np.arange(40), np.arange(40) + 30
    np.testing.assert_allclose(
        order_statistics(to_device(x), [3, 900], 32), order_statistics(x, [3, 900], 32), atol=1e-12
    )
    np.testing.assert_allclose(
        cosines_of_pairs(to_device(x), left, right, 32), cosines_of_pairs(x, left, right, 32), atol=1e-12
    )


def test_the_guard_itself_refuses():
    x = Device(np.ones((2, 2)))
    with pytest.raises(TypeError, match="silent"):
        np.asarray(x)
    with pytest.raises(TypeError, match="mixed"):
        x + np.ones(2)


def test_maps_import_neither_torch_nor_a_gpu_library():
    script = (
        "import sys, camae.maps; print(sorted({'torch', 'cupy', 'matplotlib', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
