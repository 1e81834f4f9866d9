"""Faults 8, 16 and 17 once more: arrays of any layout give equal losses, and what is no image or number is refused."""

import warnings

import numpy as np
import pytest
import torch

import camae
from camae.errors import CamaeError
from camae.model import CAMAE, preset

CHANNELS = ["DNA", "ER", "Mito"]
NOISE = torch.rand(1, 48, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    decoder = {"width": 32, "depth": 1, "heads": 4, "cross_heads": 4}
    small = {"width": 32, "heads": 2, "depth": 2, "crop": 32, "patch": 8, "layer_scale": 0.5}
    return CAMAE(preset("ca_mae_vit_ti16", channels=tuple(CHANNELS), decoder=decoder, **small)).eval()


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 4000, (3, 32, 32)).astype(np.uint16)


def read_only(image):
    image = image.copy()
    image.flags.writeable = False
    return image


LAYOUTS = {
    "big endian": lambda x: x.astype(">u2"),
    "negative strides": lambda x: x[:, ::-1].copy()[:, ::-1],
    "columns first": lambda x: np.asfortranarray(x),
    "read-only": read_only,
    "from bytes": lambda x: np.frombuffer(x.tobytes(), np.uint16).reshape(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fault_08_every_layout_of_an_array_gives_equal_values_without_a_warning(model, image, layout):
    other = LAYOUTS[layout](image)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vector = camae.embed(other, CHANNELS, model=model)
        patches, _ = model.reconstruct(other, CHANNELS, NOISE)
        loss = model.loss(other, CHANNELS, NOISE)
    np.testing.assert_array_equal(vector, camae.embed(image, CHANNELS, model=model))
    assert torch.equal(patches, model.reconstruct(image, CHANNELS, NOISE)[0])
    assert torch.equal(loss["total"], model.loss(image, CHANNELS, NOISE)["total"])
    np.testing.assert_array_equal(other, image)


@pytest.mark.parametrize("name", ["loss", "reconstruct"])
def test_fault_16_values_that_are_not_finite_are_refused_by_losses_too(model, image, name):
    image = image.astype(np.float32)
    image[1, 3, 4] = np.inf
    with pytest.raises(CamaeError, match="image 0, channel 'ER' has values that are not finite"):
        getattr(model, name)(image, CHANNELS, value_range=(0, 65535))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((3, 32, 32), object), "planes must be uint8, uint16 or float, not object"),
        (torch.empty(3, 32, 32, device="meta", dtype=torch.uint8), "not a tensor of the meta device"),
        (torch.zeros(3, 32, 32).to_sparse(), r"not a sparse tensor; call \.to_dense\(\)"),
    ],
)
def test_fault_17_what_holds_no_values_is_refused(model, image, words):
    for call in (model.loss, model.reconstruct, lambda x, c: camae.embed(x, c, model=model)):
        with pytest.raises(CamaeError, match=words):
            call(image, CHANNELS)


@pytest.mark.parametrize("ratio", [2, -0.1, float("nan"), "a", None])
def test_fault_17_mask_ratios_that_are_no_share(model, image, ratio):
    with pytest.raises(CamaeError, match=r"mask_ratio is .*; give a share of the patches, from 0 to 1"):
        model.reconstruct(image, CHANNELS, NOISE, ratio)


@pytest.mark.parametrize("alpha", [2, float("nan"), "a"])
def test_fault_17_weights_of_the_fourier_loss_out_of_range(model, image, alpha):
    with pytest.raises(CamaeError, match=r"alpha is .*; give the weight of the Fourier loss, from 0 to 1"):
        model.loss(image, CHANNELS, NOISE, alpha=alpha)


def test_fault_17_names_of_channels_with_blanks_around_them(model, image):
    with pytest.raises(
        CamaeError, match="channels holds 'DNA '; channel names are text, not empty and without blanks"
    ):
        camae.embed(image, ["DNA ", "ER", "Mito"], model=model)


def test_names_of_models_that_are_none(image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CamaeError, match="the name of the model is empty"):
        camae.embed(image, CHANNELS, model="")
    for name in ("https://huggingface.co/a/b", "HF://a/b", "hf://"):
        with pytest.raises(
            CamaeError, match=f"{name}: models are read from files and folders, or named hf://"
        ):
            camae.load(name)


def test_a_model_or_a_compute_type_of_another_kind_is_one_sentence(model, image):
    for odd in (None, 1, b"x", [], model):
        with pytest.raises(
            CamaeError, match=rf"the model is named by a {type(odd).__name__}; give the path or"
        ):
            camae.load(odd)
    found = camae.embed(image, CHANNELS, model=model, dtype=np.float32)
    np.testing.assert_array_equal(found, camae.embed(image, CHANNELS, model=model, dtype="float32"))
    with pytest.raises(CamaeError, match="dtype float16 is not float32 or bfloat16"):
        camae.embed(image, CHANNELS, model=model, dtype=np.float16)
