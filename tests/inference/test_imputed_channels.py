"""Imputed channels: the completed image by `reconstruct`, encoded; screens whose plates lack a channel."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import camae
from camae.dataloader import read_manifest
from camae.errors import CamaeError
from camae.inference import ImputedChannels, accelerate

NAMES = ["DNA", "ER", "Mito"]
FACTORS = {torch.uint8: (0, 255), torch.uint16: (0, 65535), torch.float32: (-2.0, 5.0)}


def completed_by_hand(model, image, names, missing, value_range=None):
    """The image with its missing channel last: patches of `reconstruct`, put in place pixel by pixel."""
    blank = torch.zeros_like(image[:1])
    padded, all_names = torch.cat([image, blank]), [*names, missing]
    patches, _ = model.reconstruct(
        padded, all_names, mask_ratio=0.0, hidden=[missing], value_range=value_range
    )
    P, W = model.config.patch, image.shape[2]
    own = patches.reshape(len(all_names), -1, P, P)[-1].double()
    plane = torch.zeros(image.shape[1:], dtype=torch.float64)
    for n, pixels in enumerate(own):
        row, column = divmod(n, W // P)
        plane[P * row : P * row + P, P * column : P * column + P] = pixels
    return image, plane, all_names


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_vectors_are_those_of_the_completed_image(build, dtype):
    """The imputed plane is stored in the image's dtype; its mean and scale are no part of a vector."""
    model = build()
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(2, 32, 32, generator=generator)
    low, high = FACTORS[dtype]
    image = (low + (high - low) * image).to(dtype)
    span = (low, high) if dtype.is_floating_point else None
    _, plane, names = completed_by_hand(model, image, NAMES[:2], "Mito", span)
    # The encoder standardizes planes: any scale and offset will do, here those that a 16-bit image leaves digits for.
    rest = (image.double() - low) / (high - low) * 60_000
    scaled = (plane - plane.min()) / (plane.max() - plane.min()) * 60_000
    whole = torch.cat([rest, scaled[None]]).round().to(torch.uint16)
    expected = camae.embed(whole.numpy(), names, model, pool="per_channel")
    found = camae.embed(image, NAMES[:2], model, pool="per_channel", impute=["Mito"], value_range=span)
    assert found.shape == (3, model.config.width)
    # An 8-bit plane holds the imputed one in steps of 1/16 standard deviation.
    tolerance = 2e-2 if dtype == torch.uint8 else 2e-3
    np.testing.assert_allclose(found, expected, atol=tolerance)


@pytest.mark.parametrize("value_range", [(0, 300), (0, 65535)])
def test_a_narrow_value_range_takes_no_digits(build, value_range):
    """Integer planes of few gray levels, and 8-bit planes of a wider range: vectors as without a range."""
    model, images = build(), np.random.default_rng(0).integers(0, 255, (2, 2, 32, 32))
    for dtype in (np.uint8, np.uint16):
        options = {"pool": "per_channel", "impute": ["Mito"]}
        found = camae.embed(images.astype(dtype), NAMES[:2], model, value_range=value_range, **options)
        np.testing.assert_allclose(
            found, camae.embed(images.astype(dtype), NAMES[:2], model, **options), atol=1e-4
        )


def test_other_channels_are_encoded_beside_the_imputed_one(build, picture):
    model, image = build(), picture(2)
    with_it = camae.embed(image, NAMES[:2], model, pool="per_channel", impute=["Mito"])
    alone = camae.embed(image, NAMES[:2], model, pool="per_channel")
    assert not np.allclose(with_it[:2], alone, atol=1e-4)


def test_images_that_have_the_channel_keep_their_vectors(build, picture):
    model = build()
    images, names = [picture(3), picture(2, seed=1)], [NAMES, NAMES[:2]]
    found = camae.embed(images, names, model, impute=["Mito"])
    np.testing.assert_allclose(found[0], camae.embed(images[0], NAMES, model), atol=1e-6)
    assert not np.allclose(found[1], camae.embed(images[1], NAMES[:2], model), atol=1e-4)
    # Alone or beside others: the same vector.
    np.testing.assert_allclose(found[1], camae.embed(images[1], NAMES[:2], model, impute=["Mito"]), atol=1e-5)


def test_layers_and_other_pools(build, picture):
    model, image = build(), picture(2)
    layers = camae.embed(image, NAMES[:2], model, layers=[0, 1], pool="per_channel", impute=["Mito"])
    assert layers.shape == (2, 3, model.config.width)
    maps = camae.embed(image, NAMES[:2], model, pool="patch", impute=["Mito"])
    assert maps.shape == (3, 4, 4, model.config.width)
    moments = camae.embed(image, NAMES[:2], model, pool="moments_per_channel", impute=["Mito"])
    np.testing.assert_allclose(moments[:, : model.config.width], maps.mean((1, 2)), atol=1e-5)


def test_a_screen_whose_plate_lacks_a_channel(build, screen, tmp_path):
    """Sites with the channel are those of a screen of their own; columns keep the manifest's order."""
    model = build()
    manifest = read_manifest(screen)
    table = manifest.table.copy()
    first = table["Metadata_Plate"] == table["Metadata_Plate"].iloc[0]
    table.loc[first, "DNA"] = ""
    mixed = manifest.with_table(table)
    with pytest.raises(CamaeError, match="select them or name what some lack in impute, or use pool='mean'"):
        camae.embed_screen(mixed, model, tmp_path / "a", pool="per_channel", quiet=True)
    options = {"pool": "per_channel", "level": "site", "tiles": "grid", "quiet": True}
    found = camae.embed_screen(mixed, model, tmp_path / "b", impute=["DNA"], **options)
    whole = camae.embed_screen(manifest, model, tmp_path / "c", **options)
    width = model.config.width
    features = [name for name in whole if name.startswith("emb_")]
    assert len(features) == len(manifest.channels) * width
    has_it = (found["Metadata_Plate"] != table["Metadata_Plate"].iloc[0]).to_numpy()
    assert 0 < has_it.sum() < len(has_it)
    np.testing.assert_allclose(found.loc[has_it, features], whole.loc[has_it, features], atol=1e-5)
    assert not np.allclose(found.loc[~has_it, features], whole.loc[~has_it, features], atol=1e-3)
    # A screen without the column has its vectors last.
    bare = camae.embed_screen(
        manifest.with_table(table.drop(columns="DNA")), model, tmp_path / "d", impute=["DNA"], **options
    )
    of_channel = found.loc[~has_it, features].to_numpy().reshape(-1, len(manifest.channels), width)
    dna = manifest.channels.index("DNA")
    last = np.concatenate([np.delete(of_channel, dna, 1), of_channel[:, dna : dna + 1]], axis=1)
    np.testing.assert_allclose(bare.loc[~has_it, features], last.reshape(len(last), -1), atol=1e-5)
    resumed = camae.embed_screen(mixed, model, tmp_path / "b", impute=["DNA"], **options)
    pd.testing.assert_frame_equal(resumed, found)
    with pytest.raises(CamaeError, match="another model"):
        camae.embed_screen(mixed, model, tmp_path / "b", quiet=True, level="site", tiles="grid")


def test_accelerated_models_impute(build, picture):
    model = build()
    fast = accelerate(model)
    a = camae.embed(picture(2), NAMES[:2], model, impute=["Mito"])
    b = camae.embed(picture(2), NAMES[:2], fast, impute=["Mito"])
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_refusals(build, picture, screen, tmp_path):
    model, image = build(), picture(2)
    two = NAMES[:2]
    mask = np.ones((32, 32), bool)
    for options, message in (
        ({"impute": ["ER"]}, "every image has the channel 'ER'; leave it out of impute"),
        ({"impute": ["Nope"]}, "no decoder for channel 'Nope'"),
        ({"impute": "Mito"}, "impute is"),
        ({"impute": ["Mito", "Mito"]}, "give each channel once, by its name"),
        ({"impute": ["Mito"], "region": mask}, "impute= takes whole images; leave out region="),
        ({"impute": ["Mito"], "intensity": True}, "an imputed channel has no intensities"),
        ({"impute": ["Mito"], "tiles": "interpolate"}, "an imputed channel has no intensities"),
    ):
        with pytest.raises(CamaeError, match=message):
            camae.embed(image, two, model, **options)
    with pytest.raises(CamaeError, match="all 8 sites have the channel 'ER'; leave it out of impute"):
        camae.embed_screen(screen, model, tmp_path / "a", impute=["ER"], quiet=True)
    with pytest.raises(CamaeError, match="not by a Linear"):
        ImputedChannels(torch.nn.Linear(2, 2), ["ER"])
    wrapped = ImputedChannels(model, ["Mito"])
    with pytest.raises(CamaeError, match="imputing Mito takes whole crops"):
        wrapped.encode(model.as_batch(image, two), interpolate=True)
    c = model.config
    decoder = replace(c.decoder, cross_attention="none")
    alone = type(model)(replace(c, decoder=decoder))
    with pytest.raises(CamaeError, match="see their own channel alone and cannot impute Mito"):
        ImputedChannels(alone, ["Mito"])
