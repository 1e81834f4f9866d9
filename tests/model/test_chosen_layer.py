"""The chosen layer beside a model file: written whole, read back, and refused where it is not of these weights."""

import json

import pytest
import torch

from camae.errors import CamaeError
from camae.model import load, save
from camae.model.chosen_layer import ChosenLayer, layer_file, store_layer, stored_layer

CHOICE = ChosenLayer(1, 3, "mean", "chosen on screen.csv")


@pytest.fixture
def model(tiny, tmp_path):
    return load(save(tiny(), tmp_path / "model.safetensors"))


def test_is_read_back(model, tmp_path):
    path = store_layer(model, CHOICE)
    assert path == tmp_path / "model.best_layer.json"
    assert stored_layer(model) == CHOICE
    assert stored_layer(load(tmp_path)) == CHOICE
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.best_layer.json", "model.safetensors"]


def test_a_model_without_a_file_keeps_nothing(tiny):
    assert store_layer(tiny(), CHOICE) is None
    with pytest.raises(CamaeError, match="needs a model read from a file"):
        stored_layer(tiny())


def test_no_choice_is_named(model):
    with pytest.raises(
        CamaeError, match="no layer was chosen for this model; run `camae evaluate layers` on it"
    ):
        stored_layer(model)


def test_other_weights_are_refused(model):
    store_layer(model, CHOICE)
    with torch.no_grad():
        model.encoder.cls_D += 1
    with pytest.raises(CamaeError, match="written for other weights than the model has now"):
        stored_layer(model)


@pytest.mark.parametrize(
    "change",
    [
        {"block": 3},
        {"block": True},
        {"block": -1},
        {"depth": 4},
        {"format": "x"},
        {"note": 1},
        {"pool": None},
    ],
)
def test_damage_is_named(model, change):
    path = store_layer(model, CHOICE)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CamaeError, match="is damaged; run `camae evaluate layers` on it again"):
        stored_layer(model)
    layer_file(model.file).write_text("{")
    with pytest.raises(CamaeError, match="is damaged"):
        stored_layer(model)
