"""`camae.embed`: shapes, kinds, exactness of tiling, and a sentence for every wrong input."""

import numpy as np
import pytest
import torch

import camae
from camae.embedding import default_model
from camae.embedding.windows import tile_corners
from camae.errors import CamaeError
from camae.model import save

NAMES = ["DNA", "ER", "Mito"]


def picture(c=3, size=32, seed=0, dtype=np.uint16):
    return np.random.default_rng(seed).integers(0, 250, (c, size, size)).astype(dtype)


def test_shapes_and_kinds(model):
    one, batch = picture(), np.stack([picture(seed=i) for i in range(4)])
    assert camae.embed(one, NAMES, model).shape == (32,)
    assert camae.embed(batch, NAMES, model).shape == (4, 32)
    assert camae.embed(batch, NAMES, model, pool="per_channel").shape == (4, 3, 32)
    assert camae.embed(one, NAMES, model, pool="cls").dtype == np.float32
    assert isinstance(camae.embed(torch.from_numpy(batch), NAMES, model), torch.Tensor)
    ragged = camae.embed([one, picture(2)], [NAMES, NAMES[:2]], model, pool="per_channel")
    assert [v.shape for v in ragged] == [(3, 32), (2, 32)]


def test_batch_equals_one_by_one_and_dtypes_agree(model):
    batch = np.stack([picture(seed=i) for i in range(5)])
    together = camae.embed(batch, NAMES, model, tokens_per_pass=100)
    for image, vector in zip(batch, together, strict=True):
        np.testing.assert_allclose(camae.embed(image, NAMES, model), vector, atol=1e-5)
        np.testing.assert_allclose(camae.embed(image.astype(np.uint8), NAMES, model), vector, atol=1e-5)
        as_float = camae.embed(image.astype(np.float32), NAMES, model, value_range=(0, 65535))
        # eps differs (1e-3 gray levels against 0.066): relative to the variance of 5,000 it is 1e-6
        np.testing.assert_allclose(as_float, vector, atol=1e-4)


def test_gain_and_offset_do_not_matter(model):
    """Self-standardization: x -> 3x + 500 moves nothing but eps relative to the variance."""
    image = picture()
    moved = (3 * image.astype(np.int64) + 500).astype(np.uint16)
    np.testing.assert_allclose(camae.embed(image, NAMES, model), camae.embed(moved, NAMES, model), atol=1e-5)


def test_tiles_average(model):
    field = picture(size=64)
    tiles = [field[:, y : y + 32, x : x + 32] for y in (0, 32) for x in (0, 32)]
    expected = np.mean([camae.embed(t, NAMES, model) for t in tiles], axis=0)
    np.testing.assert_allclose(camae.embed(field, NAMES, model, tile="grid"), expected, atol=1e-5)
    np.testing.assert_allclose(camae.embed(field, NAMES, model, tile="cover"), expected, atol=1e-5)


def test_cover_reaches_every_pixel():
    for size in (32, 33, 50, 64, 95):
        seen = np.zeros((size, 70), bool)
        for y, x in tile_corners(size, 70, 32, "cover"):
            seen[y : y + 32, x : x + 32] = True
        assert seen.all()
    assert len(tile_corners(2048, 2048, 256, "grid")) == 64
    assert tile_corners(64, 64, 32, "cover", overlap=0.5) == [
        (y, x) for y in (0, 16, 32) for x in (0, 16, 32)
    ]


def test_use_and_environment(model, tmp_path, monkeypatch):
    save(model, tmp_path / "model.safetensors")
    monkeypatch.delenv("CAMAE_MODEL", raising=False)
    with pytest.raises(CamaeError, match=r"camae\.use\(path\)"):
        camae.embed(picture(), NAMES)
    expected = camae.embed(picture(), NAMES, model)
    monkeypatch.setenv("CAMAE_MODEL", str(tmp_path / "model.safetensors"))
    np.testing.assert_array_equal(camae.embed(picture(), NAMES), expected)
    first = default_model.resolve_model(None)
    assert default_model.resolve_model(None) is first
    monkeypatch.delenv("CAMAE_MODEL")
    try:
        camae.use(tmp_path)
        np.testing.assert_array_equal(camae.embed(picture(), NAMES), expected)
    finally:
        camae.use(None)


def test_wrong_models_are_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(CamaeError, match=r"model is a int; give a model of camae\.load"):
        camae.embed(picture(), NAMES, 3)
    with pytest.raises(CamaeError, match="nowhere: no such model"):
        camae.embed(picture(), NAMES, tmp_path / "nowhere")
    monkeypatch.setenv("CAMAE_MODEL", str(tmp_path / "nowhere"))
    with pytest.raises(CamaeError, match=r"CAMAE_MODEL names no model: .*nowhere"):
        camae.embed(picture(), NAMES)


def test_a_model_file_that_changed_is_loaded_again(model, tmp_path):
    path = save(model, tmp_path / "model.safetensors")
    before = camae.embed(picture(), NAMES, path)
    model.encoder.patch_weight_DP2.data.neg_()
    save(model, path)
    assert np.abs(camae.embed(picture(), NAMES, path) - before).max() > 0.01


def constant():
    image = picture()
    image[1] = 7
    return image


def dim():
    """One pixel of 4 million is one gray level higher: variance 2.4e-7, below eps^2 = 1e-6, no signal."""
    image = picture(size=2048, dtype=np.uint8)
    image[1], image[1, 5, 5] = 7, 8
    return image


def dark_tiles():
    image = picture(size=64)
    image[0] = np.kron([[1, 2], [3, 4]], np.ones((32, 32))).astype(np.uint16)
    return image


def with_nan():
    image = picture(dtype=np.float32)
    image[2, 3, 4] = np.nan
    return image


@pytest.mark.parametrize(
    ("image", "channels", "options", "sentence"),
    [
        (picture(size=64), NAMES, {}, "64 x 64 px but the model's crop is 32 x 32"),
        (picture(size=24), NAMES, {"tile": "cover"}, "smaller than the model's crop"),
        (picture(), NAMES[:2], {}, "3 planes but 2 channel names"),
        (picture(), ["DNA", "DNA", "ER"], {}, "repeat"),
        (picture(), "DNA", {}, "single string"),
        (picture()[0], NAMES, {}, r"\(C, H, W\)"),
        ([], [], {}, "empty"),
        (picture(dtype=np.float32) / 255, NAMES, {}, r"looks like an image scaled to \[0, 1\]"),
        (picture(dtype=np.float32), NAMES, {}, "value_range"),
        (picture(dtype=np.int32), NAMES, {}, "must be uint8, uint16 or float"),
        (with_nan(), NAMES, {"value_range": (0, 255)}, "channel 'Mito' has values that are not finite"),
        (constant(), NAMES, {}, "channel 'ER' is constant"),
        (picture(), NAMES, {"value_range": (1, 1)}, "empty"),
        (picture(), NAMES, {"pool": "max"}, "pool 'max'"),
        (picture(), NAMES, {"tile": "mosaic"}, "tiles 'mosaic'"),
        (picture(), NAMES, {"dtype": "float16"}, "not float32 or bfloat16"),
        (picture(), NAMES, {"dtype": "single"}, "dtype single is not float32"),
        (picture(), NAMES, {"tile": "grid", "tiles": "cover"}, "are the same option"),
        (picture(), NAMES, {"tile": "cover", "overlap": 1.0}, r"overlap 1.0 is not a share"),
        (picture(), NAMES, {"layers": 2}, r"layers holds 2; the encoder has blocks 0 to 1"),
        (picture(), NAMES, {"layers": []}, "layers is empty"),
        (picture(), NAMES, {"tokens_per_pass": 0}, "tokens_per_pass 0"),
        (picture(), ["DNA", "ER", 3], {}, "channels holds 3; channel names are text"),
        (picture(), ["DNA", "ER", ""], {}, "channels holds ''"),
        (picture(), 3, {}, "channels is a int"),
        (picture(), ["DNA", ["ER"], "Mito"], {}, "mixes names and lists"),
        ("plate.tif", NAMES, {}, "images hold a str"),
        ([[1, 2]], NAMES, {}, "images hold a list"),
        (picture()[None, None], NAMES, {}, r"\(1, 1, 3, 32, 32\)"),
        (np.zeros((0, 3, 32, 32), np.uint8), NAMES, {}, "the batch of images is empty"),
        (np.zeros((0, 32, 32), np.uint8), [], {}, "there is nothing in it"),
        (picture(dtype=np.complex64), NAMES, {}, "must be uint8, uint16 or float, not complex64"),
        (picture(dtype=np.float32), NAMES, {"value_range": (0, 1)}, r"far outside value_range \(0, 1\)"),
        (picture(dtype=np.float32), NAMES, {"value_range": (0, 1, 2)}, "value_range is"),
        (dim(), NAMES, {"tile": "interpolate"}, "channel 'ER' is constant"),
        (dark_tiles(), NAMES, {"tile": "grid"}, "channel 'DNA' is constant .* in every tile"),
        (picture(size=60), NAMES, {"tile": "interpolate"}, "not a multiple of the patch"),
        ([picture(), picture(2)], [NAMES], {}, "1 lists of channel names for 2 images"),
    ],
)
def test_wrong_input_is_one_sentence(model, image, channels, options, sentence):
    with pytest.raises(CamaeError, match=sentence):
        camae.embed(image, channels, model, **options)


def test_layers(model):
    """The last block's output is the embedding; each is what a model cut off after that block gives."""
    batch = np.stack([picture(seed=i) for i in range(2)])
    both = camae.embed(batch, NAMES, model, "per_channel", layers=(-1, 0))
    assert both.shape == (2, 2, 3, 32)
    np.testing.assert_array_equal(both[:, 0], camae.embed(batch, NAMES, model, "per_channel"))
    np.testing.assert_array_equal(
        camae.embed(batch, NAMES, model, layers=1), camae.embed(batch, NAMES, model)
    )
    first = camae.embed(batch, NAMES, model, "per_channel", layers=0)
    np.testing.assert_array_equal(first, both[:, 1])
    del model.encoder.blocks[1]
    np.testing.assert_array_equal(camae.embed(batch, NAMES, model, "per_channel"), first)


def test_a_tile_without_signal_is_left_out_and_named(model):
    field = picture(size=64)
    field[1, 32:, :32] = 5
    tiles = [field[:, y : y + 32, x : x + 32] for y, x in ((0, 0), (0, 32), (32, 32))]
    expected = np.mean([camae.embed(t, NAMES, model) for t in tiles], axis=0)
    with pytest.warns(UserWarning, match=r"image 0: the tile at row 32, column 0 .* 'ER' is constant \(5"):
        got = camae.embed(field, NAMES, model, tiles="grid")
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_ragged_in_every_way(model):
    """Channels, sizes and dtypes mixed: every image as if alone, in the order given."""
    images = [picture(3, 64), picture(1, 32, 1, np.uint8), picture(2, 96, 2), picture(3, 32, 3, np.uint8)]
    names = [NAMES[: len(i)] for i in images]
    together = camae.embed(images, names, model, tile="grid")
    for image, name, vector in zip(images, names, together, strict=True):
        np.testing.assert_allclose(camae.embed(image, name, model, tile="grid"), vector, atol=1e-5)


def test_other_byte_order_and_strides(model):
    image = picture()
    expected = camae.embed(image, NAMES, model)
    np.testing.assert_array_equal(camae.embed(image.astype(">u2"), NAMES, model), expected)
    np.testing.assert_array_equal(camae.embed(image[:, ::-1][:, ::-1], NAMES, model), expected)


def test_bfloat16_is_near(model):
    a = camae.embed(picture(), NAMES, model)
    b = camae.embed(picture(), NAMES, model, dtype="bfloat16")
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert cosine > 0.999  # bf16 keeps 8 bits: relative rounding 2^-9 per op, a few ops deep
    assert b.dtype == np.float32
