"""A bag of channels is the mean of the channels' own embeddings."""

import numpy as np
import pytest
import torch

import camae
from camae.errors import CamaeError
from camae.inference.bag_of_channels import BagOfChannels

NAMES = ["DNA", "ER", "Mito"]


def test_bag_of_channels_is_each_channel_alone(build, picture):
    model = build()
    bag = BagOfChannels(model)
    images, names = [picture(), picture(2, seed=1)], [NAMES, NAMES[1:]]
    for image, channels, mean, cls, each in zip(
        images,
        names,
        camae.embed(images, names, bag),
        camae.embed(images, names, bag, pool="cls"),
        camae.embed(images, names, bag, pool="per_channel"),
        strict=True,
    ):
        alone = [camae.embed(image[c : c + 1], channels[c : c + 1], model) for c in range(len(image))]
        classes = [
            camae.embed(image[c : c + 1], channels[c : c + 1], model, pool="cls") for c in range(len(image))
        ]
        np.testing.assert_allclose(each, np.stack(alone), atol=1e-5)
        np.testing.assert_allclose(mean, np.mean(alone, 0), atol=1e-5)
        np.testing.assert_allclose(cls, np.mean(classes, 0), atol=1e-5)
    assert not np.allclose(
        camae.embed(images[0], NAMES, model), camae.embed(images[0], NAMES, bag), atol=1e-3
    )


def test_bag_of_channels_embeds_a_screen_of_its_own(build, picture, screen, tmp_path):
    model = build()
    bag = camae.embed_screen(screen, BagOfChannels(model), tmp_path / "bag", tiles="center", quiet=True)
    assert len(bag) == 8
    with pytest.raises(CamaeError, match="another model"):
        camae.embed_screen(screen, model, tmp_path / "bag", tiles="center", quiet=True)
    mask = np.zeros((32, 32), bool)
    mask[:8] = True
    with pytest.raises(CamaeError, match="need a CA-MAE"):
        camae.embed(picture(), NAMES, BagOfChannels(model), region=mask)


def test_refuses_other_models():
    with pytest.raises(CamaeError, match="needs a CA-MAE, not a Linear"):
        BagOfChannels(torch.nn.Linear(2, 2))
