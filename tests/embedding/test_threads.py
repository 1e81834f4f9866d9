"""Embedding from many threads: exact vectors, one model loaded, the model left as it was; vectors that are numbers."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import camae
from camae.errors import CamaeError
from camae.model import CAMAE, preset, save

TINY = {
    "channels": ("DNA", "ER"),
    "crop": 32,
    "patch": 8,
    "width": 32,
    "heads": 2,
    "depth": 3,
    "drop_path": 0.5,
    "decoder": {"width": 32, "depth": 1, "heads": 4, "cross_heads": 4},
}


@pytest.fixture
def tiny_model():
    torch.manual_seed(0)
    return CAMAE(preset("ca_mae_vit_ti16", **TINY, layer_scale=1.0))


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 5000, (2, 32, 32)).astype(np.uint16)


def test_fault_21_embed_in_threads_is_exact_and_leaves_the_model_in_training(tiny_model, image):
    """Stochastic depth of one half would show in any vector that was computed in training mode."""
    expected = camae.embed(image, ["DNA", "ER"], model=tiny_model.eval())
    tiny_model.train()
    with ThreadPoolExecutor(8) as threads:
        work = [threads.submit(camae.embed, image, ["DNA", "ER"], model=tiny_model) for _ in range(320)]
        found = [future.result() for future in work]
    assert all(np.array_equal(vector, expected) for vector in found)
    assert all(module.training for module in tiny_model.modules())


def test_fault_21_use_in_threads(tiny_model, image, tmp_path):
    """Every thread names a model and embeds; whichever it is, there is one, and each file is loaded whole."""
    files = [save(tiny_model.eval(), tmp_path / f"{i}.safetensors") for i in range(2)]
    expected = camae.embed(image, ["DNA", "ER"], model=tiny_model)

    def work(i):
        camae.use(files[i % 2])
        return camae.embed(image, ["DNA", "ER"])

    try:
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(work, range(160)))
    finally:
        camae.use(None)
    assert all(np.allclose(vector, expected, atol=1e-6) for vector in found)


def test_fault_16_a_vector_that_is_no_number_is_refused(tiny_model, image, monkeypatch):
    original = CAMAE.encode

    def encode(self, *given, **options):
        tokens, layout = original(self, *given, **options)
        tokens[-1] = float("nan")
        return tokens, layout

    monkeypatch.setattr(CAMAE, "encode", encode)
    with pytest.raises(CamaeError, match=r"image 1: .* gives a vector with NaN or infinity"):
        camae.embed(np.stack([image, image]), ["DNA", "ER"], model=tiny_model)


def test_fault_27_a_refused_embedding_has_not_claimed_its_folder(screen, tmp_path, tiny_model):
    model = CAMAE(preset("ca_mae_vit_ti16", **TINY | {"channels": ("DNA", "ER", "Mito")})).eval()
    missing = next(iter(sorted(screen.parent.glob("*.tif"))))
    missing.rename(missing.with_suffix(".away"))
    with pytest.raises(CamaeError, match=missing.name):
        camae.embed_screen(screen, model, tmp_path / "emb", quiet=True)
    assert not (tmp_path / "emb").exists()
    missing.with_suffix(".away").rename(missing)
    assert (
        len(camae.embed_screen(screen, model, tmp_path / "emb", quiet=True, tiles="cover", overlap=0.1)) == 8
    )
