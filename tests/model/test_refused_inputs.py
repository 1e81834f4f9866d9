"""Sentences of refusals of models, embedding and training that no other test reads."""

import numpy as np
import pytest
import torch

import camae
from camae.embedding.default_model import VARIABLE
from camae.errors import CamaeError
from camae.model.activation_checkpointing import set_recompute
from camae.model.devices import check_device
from camae.model.standardization import standardization_eps
from camae.reproduction.paper.paper_systems import chosen
from camae.reproduction.paper.run_paper import run_paper
from camae.training.evaluation import Probe
from camae.training.optimization import freeze


def test_embedding_without_a_model(monkeypatch, image):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("camae.embedding.default_model._chosen", {})
    with pytest.raises(CamaeError, match=r"no model: pass model=, or name one with camae\.use\(path\)"):
        camae.embed(image(2), ["DNA", "ER"])


def test_images_of_another_size_or_kind(tiny, image):
    model = tiny()
    with pytest.raises(
        CamaeError, match=r"image 0 is 40 x 40 px but the model's crop is 32 x 32 px; tile it"
    ):
        camae.embed(image(2, size=40), ["DNA", "ER"], model=model)
    with pytest.raises(
        CamaeError, match=r"looks like an image scaled to .*; say its lowest and highest possible"
    ):
        camae.embed(torch.rand(2, 32, 32), ["DNA", "ER"], model=model)
    with pytest.raises(CamaeError, match=r"value_range \(1, 1\) is empty: give \(lowest, highest\)"):
        standardization_eps("own", torch.uint16, (1, 1))


def test_regions_without_pixels(tiny, image):
    options = {"model": tiny(), "channels": ["DNA", "ER"]}
    with pytest.raises(CamaeError, match="image 0, region 0 is empty: its mask has no true pixel"):
        camae.embed(image(2), region=np.zeros((32, 32), bool), **options)
    with pytest.raises(CamaeError, match="image 0: the label image has negative labels"):
        camae.embed(image(2), region=np.full((32, 32), -1), **options)


def test_noise_and_reduction(tiny, image):
    model = tiny()
    with pytest.raises(CamaeError, match="noise has 3 values but the images have 32 patches"):
        model.loss(image(2), ["DNA", "ER"], noise=torch.rand(1, 3))
    with pytest.raises(CamaeError, match="reduction 'mean' is not 'samples' or 'tokens'"):
        model.loss(image(2), ["DNA", "ER"], reduction="mean")


def test_devices_and_recomputing():
    with pytest.raises(CamaeError, match="device 'meta': camae runs on 'cpu' and on 'cuda'"):
        check_device("meta")
    with pytest.raises(CamaeError, match="recompute=2: Linear has no blocks that can be computed again"):
        set_recompute(torch.nn.Linear(2, 2), 2)


def test_settings_of_training(tiny, tmp_path):
    model = tiny()
    with pytest.raises(CamaeError, match=r"freeze=\['encoder', 'decoder', .* leaves nothing to train"):
        freeze(model, ("encoder", "decoder", *{name for name, _ in model.named_parameters()}))
    with pytest.raises(CamaeError, match="a probe of kind 'recall' needs pairs, a CSV of known pairs"):
        Probe(tmp_path, kind="recall")


def test_settings_of_the_paper(tmp_path):
    with pytest.raises(CamaeError, match="size 'huge' is not 'smallest' or 'paper'"):
        chosen("huge", None)
    with pytest.raises(CamaeError, match="checkpoints 'first' is not 'last' or 'all'"):
        run_paper(tmp_path, tmp_path / "out", checkpoints="first")
