"""Torch tensors in maps: the results of NumPy, as tensors, without a copy, and on a CUDA device without the host.

There, CuPy's stand-in (device_arrays) takes the memory of a tensor that says it lies on cuda:0; every silent move to
the host raises. On a machine with a GPU the same calls run on the card.
"""

import contextlib
import sys
import types

import numpy as np
import pandas as pd
import pytest
import torch
from device_arrays import Device
from map_calls import CALLS, CONTROL, META, NAMES, PAIRS, PERT, PLATE, RULES, N, V, X

import camae
from camae import maps
from camae.errors import CamaeError, MissingBackendError
from camae.model import CAMAE, preset

# Of camae.maps, what takes no array of numbers: tables and files, names, and the classes of aligners.
NO_ARRAYS = {
    "METHODS", "ScreenMap", "align_parquet", "fit_parquet", "transform_parquet", "load_aligner", "map_screen",
    "mean_average_precision", "perturbation_names", "read_arms", "read_expression", "read_pairs", "save_aligner",
    "read_pairs_folder", "read_profiles", "PCA", "Center", "PCAStandardize", "RobustizeMAD", "Spherize",
    "Standardize", "TVNAndo", "average_precision_p_values", "activity_agreement", "calibration_summary",
    "replicate_warnings", "screen_activity",
}  # fmt: skip


class CudaTensor(torch.Tensor):
    """Tensor that says it lies on cuda:0."""

    @property
    def device(self):
        return torch.device("cuda:0")


@pytest.fixture(params=["cpu", "guarded", pytest.param("cuda", marks=pytest.mark.gpu)])
def tensor(request, monkeypatch):
    """Makes the tensor under test of a NumPy array."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        pytest.importorskip("cupy", reason="needs CuPy")
        return lambda x: torch.from_numpy(np.array(x)).cuda()
    if request.param == "guarded":
        _stand_in(monkeypatch, [])
        return lambda x: torch.from_numpy(np.array(x)).as_subclass(CudaTensor)
    return lambda x: torch.from_numpy(np.array(x))


def _stand_in(monkeypatch, entered):
    """CuPy's stand-in as the module cupy; `entered` notes devices and streams that CuPy is told to work on."""

    @contextlib.contextmanager
    def enter(*what):
        entered.append(what)
        yield

    def from_dlpack(x):
        host = x.as_subclass(torch.Tensor).numpy()
        return Device(host)

    cuda = types.SimpleNamespace(
        Device=lambda index: enter("device", index),
        ExternalStream=lambda pointer, index: enter("stream", pointer, index),
        Stream=types.SimpleNamespace(null=enter("null stream")),
    )
    cupy = types.SimpleNamespace(from_dlpack=from_dlpack, cuda=cuda)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda index: types.SimpleNamespace(cuda_stream=77), raising=False
    )


def _equal(found, expected):
    if isinstance(expected, np.ndarray) and expected.dtype.kind == "f":
        assert isinstance(found, torch.Tensor)
        assert found.dtype == torch.from_numpy(expected).dtype
        np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=0, atol=1e-8)
    elif isinstance(expected, tuple):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    elif isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(found, expected, atol=1e-3 if "p_value" in expected else 1e-9)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            _equal(found[key], value)
    else:  # sums in another order: some units in the last place
        assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CALLS)
def test_tensors_give_what_numpy_gives(name, tensor):
    _equal(CALLS[name](tensor), CALLS[name](np.array))


def test_every_public_function_of_arrays_is_called_here():
    called = {name.split()[0] for name in CALLS} - {"keyword"}
    assert called | NO_ARRAYS == set(maps.__all__)


@pytest.mark.filterwarnings("ignore")
def test_cuda_tensors_are_computed_on_their_device_and_on_torchs_stream(monkeypatch):
    entered = []
    _stand_in(monkeypatch, entered)
    x = torch.from_numpy(X).as_subclass(CudaTensor)
    maps.align(x, "center")
    assert entered == [("device", 0), ("stream", 77, 0)]


def test_memory_is_shared_and_not_copied(monkeypatch):
    x = torch.from_numpy(np.array(X))
    assert maps.align(x, "none").data_ptr() == x.data_ptr()
    _stand_in(monkeypatch, [])
    assert maps.align(x.as_subclass(CudaTensor), "none").data_ptr() == x.data_ptr()


def test_precision_and_gradients():
    x = torch.from_numpy(X)
    for given, expected in [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.int16, torch.float64),
    ]:
        found = maps.align((100 * x).to(given), "center")
        assert found.dtype == expected
        host = maps.align((100 * x).to(given).to(expected).numpy(), "center")
        np.testing.assert_array_equal(found.numpy(), host)
    assert not maps.align(x.clone().requires_grad_(), "center").requires_grad


def test_an_alignment_fitted_on_one_library_is_applied_to_the_other(monkeypatch):
    host = maps.TVN().fit(X, PLATE, CONTROL)
    device = maps.TVN().fit(Device(np.array(X)), PLATE, CONTROL)
    expected = host.transform(X, PLATE)
    np.testing.assert_allclose(device.transform(X, PLATE), expected, atol=1e-9)
    found = host.transform(Device(np.array(X)), PLATE)
    assert isinstance(found, Device)
    np.testing.assert_allclose(found.get(), expected, atol=1e-9)


def test_what_cannot_be_taken_is_said(monkeypatch):
    x = torch.from_numpy(X)
    for bad, sentence in [
        (torch.empty(4, 2, device="meta"), "a tensor is on the device meta"),
        (x.to_sparse(), "a tensor is a sparse tensor on the device cpu; give a dense tensor"),
    ]:
        with pytest.raises(CamaeError, match=sentence):
            maps.align(bad, "center")
    with pytest.raises(CamaeError, match="row 3, column 1"):
        maps.relate(x.index_put((torch.tensor(3), torch.tensor(1)), torch.tensor(float("nan")).double()))
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(
        MissingBackendError, match=r"cuda:0.*CuPy, which is not installed; pip install 'camae\[gpu\]'"
    ):
        maps.align(x.as_subclass(CudaTensor), "center")


class OtherCuda(CudaTensor):
    @property
    def device(self):
        return torch.device("cuda:1")


def test_tensors_on_two_devices_are_refused(monkeypatch):
    _stand_in(monkeypatch, [])
    v = torch.from_numpy(V)
    with pytest.raises(CamaeError, match="tensors are on cuda:0 and cuda:1; move them to one device"):
        maps.pooled_recall([v.as_subclass(CudaTensor), v.as_subclass(OtherCuda)], NAMES, PAIRS)


def test_warnings_name_the_line_of_the_call():
    x, meta = np.column_stack([X, np.zeros(N)]), META.assign(pert=np.where(np.arange(N) == 0, "once", PERT))
    for call in [
        lambda: maps.Standardize().fit(x, PLATE),
        lambda: maps.average_precision(X, meta, *RULES),
        lambda: maps.recall_at_fpr(V, NAMES, [*PAIRS, ("p00", "nowhere")]),
    ]:
        with pytest.warns(UserWarning, match="vary|not scored|left out") as caught:
            call()
        assert caught[0].filename == __file__


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_from_images_to_recall_as_tensors(device):
    if device == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        pytest.importorskip("cupy", reason="needs CuPy")
    torch.manual_seed(0)
    model = CAMAE(preset("ca_mae_vit_ti16", crop=64, depth=1, channels=("DNA",))).eval().to(device)
    pixels = np.random.default_rng(1).integers(0, 4096, (40, 1, 64, 64), dtype=np.uint16)
    images = torch.from_numpy(pixels).to(device)
    plate, control = np.repeat(["P0", "P1"], 20), np.arange(40) % 4 == 0
    gene = np.array([f"g{i}" for i in np.arange(40) % 8])

    def recalled(emb):
        z = maps.align(emb, "tvn", batch=plate, control=control, components=4)
        v = maps.aggregate(z, by=gene, control=control)
        names = maps.perturbation_names(gene)
        return v, maps.recall(v, names, [("g1", "g2"), ("g3", "g5")])

    emb = camae.embed(images, ["DNA"], model=model)
    assert emb.device.type == device
    vectors, score = recalled(emb)
    assert vectors.device == emb.device
    _, expected = recalled(emb.cpu().numpy())
    pd.testing.assert_frame_equal(score, expected)
