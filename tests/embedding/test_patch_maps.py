"""Patch maps: the encoder's tokens at their places, against tokens encoded one image at a time."""

import numpy as np
import pytest
import torch

import camae
from camae.dataloader.plane_batch import PlaneBatch
from camae.embedding import BagOfChannels
from camae.errors import CamaeError

NAMES = ["DNA", "ER", "Mito"]


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 60000, (3, 32, 32)).astype(np.uint16)


def tokens(model, image, names=NAMES):
    """(C, 4, 4, D) of an image of the model's crop, straight from the encoder: class token, then plane by plane."""
    batch = PlaneBatch.from_images([torch.from_numpy(image)], [names])
    with torch.inference_mode():
        found, _ = model.encode(batch)
    return found[1:].reshape(len(names), 4, 4, -1).numpy()


def test_a_map_is_the_tokens_at_their_places(model, image):
    found = camae.embed(image, NAMES, model, pool="patch")
    assert found.shape == (3, 4, 4, 32)
    np.testing.assert_allclose(found, tokens(model, image), rtol=0, atol=1e-5)
    mean = camae.embed(image, NAMES, model, pool="patch_mean")
    np.testing.assert_allclose(mean, tokens(model, image).mean(0), rtol=0, atol=1e-5)


def test_means_over_the_map_are_the_other_poolings(model, image):
    found = camae.embed(image, NAMES, model, pool="patch")
    per_channel = camae.embed(image, NAMES, model, pool="per_channel")
    np.testing.assert_allclose(found.mean((1, 2)), per_channel, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.mean((0, 1, 2)), camae.embed(image, NAMES, model), rtol=0, atol=1e-5)


def test_batches_lists_and_layers(model, image):
    other = image[:, ::-1].copy()
    both = camae.embed(np.stack([image, other]), NAMES, model, pool="patch")
    assert both.shape == (2, 3, 4, 4, 32)
    np.testing.assert_allclose(both[1], tokens(model, other), rtol=0, atol=1e-5)
    ragged = camae.embed([image, other[:2]], [NAMES, NAMES[:2]], model, pool="patch")
    assert [m.shape for m in ragged] == [(3, 4, 4, 32), (2, 4, 4, 32)]
    np.testing.assert_allclose(ragged[1], tokens(model, other[:2], NAMES[:2]), rtol=0, atol=1e-5)
    layers = camae.embed(torch.from_numpy(image), NAMES, model, pool="patch_mean", layers=[0, -1])
    assert isinstance(layers, torch.Tensor)
    assert layers.shape == (2, 4, 4, 32)
    assert camae.embed(image, NAMES, model, pool="patch", layers=-1).shape == (3, 4, 4, 32)


def test_a_field_of_tiles_is_stitched_and_a_tile_without_signal_is_nan(model):
    field = np.random.default_rng(1).integers(0, 60000, (3, 70, 100)).astype(np.uint16)
    field[1, 32:64, 64:96] = 7
    with pytest.warns(
        UserWarning, match="image 0: the tile at row 32, column 64 is left out: channel 'ER' is const"
    ):
        found = camae.embed(field, NAMES, model, pool="patch", tiles="grid")
    assert found.shape == (3, 8, 12, 32)
    for row in range(2):
        for column in range(3):
            tile = field[:, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32].copy()
            part = found[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            if (row, column) == (1, 2):
                assert np.isnan(part).all()
            else:
                np.testing.assert_allclose(part, tokens(model, tile), rtol=0, atol=1e-5)


def test_one_window_of_a_larger_field(model):
    field = np.random.default_rng(2).integers(0, 60000, (3, 50, 61)).astype(np.uint16)
    center = camae.embed(field, NAMES, model, pool="patch", tiles="center")
    np.testing.assert_allclose(center, tokens(model, field[:, 9:41, 14:46].copy()), rtol=0, atol=1e-5)
    whole = camae.embed(field[:, :48, :40], NAMES, model, pool="patch_mean", tiles="interpolate")
    assert whole.shape == (6, 5, 32)


def test_what_has_no_map_is_refused(model, image, screen, tmp_path):
    with pytest.raises(
        CamaeError, match=r"pool='patch' gives a map of whole images; leave out region= and intensity="
    ):
        camae.embed(image, NAMES, model, pool="patch", region=np.ones((32, 32), bool))
    with pytest.raises(CamaeError, match=r"pool='patch_mean' gives a map of whole images"):
        camae.embed(image, NAMES, model, pool="patch_mean", intensity=True)
    with pytest.raises(
        CamaeError, match=r"needs tiles side by side: tiles='grid', 'center' or 'interpolate'"
    ):
        camae.embed(image, NAMES, model, pool="patch", tiles="cover")
    with pytest.raises(CamaeError, match=r"has no tokens: region=, layers= and pool='patch' need a CA-MAE"):
        camae.embed(image, NAMES, BagOfChannels(model), pool="patch")
    with pytest.raises(
        CamaeError, match=r"gives a map of each image, which no table of vectors can hold; use camae.em"
    ):
        camae.embed_screen(screen, model, tmp_path / "emb", pool="patch", quiet=True)
    assert not (tmp_path / "emb").exists()
