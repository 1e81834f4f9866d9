"""Back-ends of a model: one frozen object, known to every module that runs an op."""

import dataclasses

import pytest

from camae.errors import CamaeError
from camae.model import Backends, backends, load, save
from camae.model.backends import BackendModule
from camae.model.interface import Reconstructs, TokenModel


def held(model):
    return [module.backends for module in model.modules() if isinstance(module, BackendModule)]


def test_backends_reach_every_block(tiny):
    model = tiny(decoder={"depth": 1})
    assert len(held(model)) > 5
    assert set(held(model)) == {Backends()}
    changed = Backends(attention="reference", elementwise="reference")
    assert model.use_backends(changed) is model
    assert set(held(model)) == {changed}


def test_settings_as_text_and_as_a_table():
    expected = Backends(attention="triton", loss="reference")
    assert Backends.of("attention=triton, loss = reference") == expected
    assert Backends.of({"attention": "triton", "loss": "reference", "tokenize": None}) == expected
    assert Backends.of(expected) is expected
    assert Backends.of(None) == Backends.of("") == Backends()
    assert str(expected) == "attention=triton,loss=reference"
    assert expected.names("cuda") == {
        "tokenize": "triton",
        "attention": "triton",
        "loss": "reference",
        "elementwise": "triton",
        "block": "reference",
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("attention", "'attention' is not a setting; write attention=triton"),
        ({"norm": "triton"}, "unknown norm; known are tokenize, attention, loss, elementwise"),
        ("loss=cudnn", "loss has no back-end 'cudnn'; choose from triton, reference"),
    ],
)
def test_wrong_settings_are_one_sentence(settings, message):
    with pytest.raises(CamaeError, match=message):
        Backends.of(settings)


def test_environment_is_read_once_and_arguments_win(monkeypatch, tiny, tmp_path):
    monkeypatch.setenv("CAMAE_BACKENDS", "attention=reference,loss=reference")
    backends._from_environment.cache_clear()
    try:
        assert tiny().backends == Backends(attention="reference", loss="reference")
        assert Backends.of("loss=triton") == Backends(attention="reference", loss="triton")
        monkeypatch.setenv("CAMAE_BACKENDS", "nonsense")
        assert tiny().backends.attention == "reference"
        backends._from_environment.cache_clear()
        with pytest.raises(CamaeError, match="CAMAE_BACKENDS: 'nonsense' is not a setting"):
            tiny()
    finally:
        backends._from_environment.cache_clear()


def test_a_loaded_model_runs_on_what_is_asked_for(tiny, tmp_path):
    file = save(tiny(), tmp_path / "model.safetensors")
    model = load(file, backends={"attention": "reference"})
    assert set(held(model)) == {Backends(attention="reference")}
    with backends.using_backends(model, "elementwise=reference"):
        assert set(held(model)) == {Backends(elementwise="reference")}
    assert set(held(model)) == {Backends(attention="reference")}


def test_backends_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Backends().attention = "reference"


def test_what_a_ca_mae_can_do(tiny):
    model = tiny()
    assert isinstance(model, TokenModel)
    assert isinstance(model, Reconstructs)
